"""`export`: a model written for other programs, held against what was evaluated."""
