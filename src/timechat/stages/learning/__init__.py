"""`learn`: a run learns from its corrections, and offers what lost nothing."""
