"""The upper seam: messages in, pieces of text out. An engine with a chat format around it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from timechat.conversation import Message
from timechat.engine.protocol import Ending, Engine, Sampling
from timechat.errors import ModelError
from timechat.model.render import Renderer


class Responder:
    """Answers conversations with one engine and one chat format.

    `ending` tells how the last answer ended.
    """

    def __init__(self, engine: Engine, renderer: Renderer, window: int) -> None:
        self.engine = engine
        self.renderer = renderer
        self.window = window
        self.ending: Ending | None = None

    def reply(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str]:
        """Yield the answer in pieces of whole characters.

        Raises ModelError when the conversation leaves no room for an answer.
        """
        prompt = self.renderer.prompt(messages)
        if len(prompt) + 8 > self.window:
            raise ModelError(
                f"the conversation has {len(prompt)} tokens and the model's window is "
                f"{self.window}: start a new one"
            )
        self.ending = Ending.CANCELLED
        ids: list[int] = []
        shown = ""
        for delta in self.engine.stream(prompt, sampling, self.renderer.stop_ids):
            if delta.token is None:
                self.ending = delta.ending
                break
            ids.append(delta.token)
            text = self._decode(ids)
            # A character of several tokens decodes to the replacement mark until it is whole.
            if not text.endswith("�"):
                yield text[len(shown) :]
                shown = text
        rest = self._decode(ids)[len(shown) :]
        if rest:
            yield rest

    def _decode(self, ids: list[int]) -> str:
        return str(self.renderer.tokenizer.decode(ids, skip_special_tokens=True))
