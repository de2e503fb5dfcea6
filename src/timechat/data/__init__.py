"""Raw rows to packed batches, in this order:

`files` (what a file is, its items), `shapes` (what an item means), `rows` and `sources` (items to
conversations), `cleaning`, `splitting`, `pack`.
"""
