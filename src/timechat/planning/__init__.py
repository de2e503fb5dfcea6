"""Arithmetic before a run: will it fit, how long will it take, at what settings, and why."""
