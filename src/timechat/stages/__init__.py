"""The verbs, one a file: each takes a recipe or a run and leaves files."""
