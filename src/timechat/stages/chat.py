"""`chat`: a model by name, ready to answer."""

from __future__ import annotations

from collections.abc import Callable

from timechat.engine.responder import Responder
from timechat.engine.torch import TorchEngine, window_of
from timechat.model.adapt import merge
from timechat.model.load import load, resolve


def open_responder(model: str, say: Callable[[str], None] = lambda _: None) -> Responder:
    """Load MODEL for conversation. An adapter is folded into its base: a third less work a word.

    The `export` check of the run bounds what folding changes.
    """
    loaded = load(resolve(model, say))
    merge(loaded.model)
    return Responder(TorchEngine(loaded.model), loaded.renderer, window_of(loaded.model))
