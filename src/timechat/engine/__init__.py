"""Generation: token ids in, pieces of text out."""
