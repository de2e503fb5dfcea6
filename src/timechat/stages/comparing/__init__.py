"""`compare`: two models, and whatever else could have answered, on the same questions."""
