"""People judge, and what they said becomes rows: `annotate` and `collect`."""
