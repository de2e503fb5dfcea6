"""Faults of rows: the steps that keep, flag, edit or drop one, and labels that mislead."""
