"""`chat`: a model by name, ready to answer."""

from __future__ import annotations

from collections.abc import Callable

from timechat.engine.blocking import BlockingResponder
from timechat.stages.serving.serve import find_models, open_model


def open_responder(model: str, say: Callable[[str], None] = lambda _: None) -> BlockingResponder:
    """Open MODEL for conversation, on the seam that `serve` answers with."""
    (found,) = find_models([model], say)
    return BlockingResponder(open_model(found))
