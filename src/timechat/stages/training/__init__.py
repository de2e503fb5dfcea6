"""A recipe becomes a tuned model and its report: `plan`, `train` and `resume`."""
