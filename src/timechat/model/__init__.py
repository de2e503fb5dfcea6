"""Weights and token ids: load a model, render conversations, attach what learns."""
