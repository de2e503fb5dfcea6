"""The recipe of a run: what may be written in it, and how it is read."""
