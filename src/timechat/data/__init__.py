"""Raw rows to packed batches: read, clean, split, pack."""
