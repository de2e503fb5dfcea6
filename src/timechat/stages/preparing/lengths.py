"""How many tokens a conversation is for a model, as `data.clean.max_tokens` counts them."""

from __future__ import annotations

from timechat.data.cleaning.steps import Count
from timechat.model.load import load_tokenizer, resolve
from timechat.model.render import Renderer


def token_counter(base: str) -> Count:
    """Counts under the template of `base`. Raises ModelError."""
    renderer = Renderer(load_tokenizer(resolve(base).folder))
    return lambda messages: len(renderer.example(messages))
