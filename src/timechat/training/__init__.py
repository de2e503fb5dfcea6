"""One loop for every method: the loop, its loss, its optimizer, its checkpoints."""
