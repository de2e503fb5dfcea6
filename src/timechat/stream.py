"""A chat completion out of a stream of server-sent events, and when its first word came.

It reads strangers' bytes as they come and leaves what `endpoint` reads of an answer in one piece.
Asking, retrying and limits are `endpoint`'s; the stream of a conversation is `engine.hosted`'s.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

ASKED = {"stream": True, "stream_options": {"include_usage": True}}
"""What a request adds to be answered in a stream that ends with its tokens counted."""


def read_answer(data: bytes) -> Any:
    """A stranger's JSON. Raises ValueError, in words for who asked."""
    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("the answer is not UTF-8") from None
    except (ValueError, RecursionError):
        raise ValueError("the answer is not whole JSON") from None


@dataclass
class Streamed:
    """One answer on its way. `first` is what `clock` said when its first words were there."""

    clock: Callable[[], float]
    first: float | None = None
    done: bool = False
    _rest: bytes = b""
    _texts: list[str] = field(default_factory=list[str])
    _about: dict[str, Any] = field(default_factory=dict[str, Any])
    _ending: str = ""

    def take(self, part: bytes) -> None:
        """Read what has come. Raises ValueError for what is no event of a chat completion."""
        *lines, self._rest = (self._rest + part).replace(b"\r\n", b"\n").split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._read(line[5:].strip())

    def whole(self) -> dict[str, Any]:
        """The answer as it would have come in one piece. Raises ValueError where it broke off."""
        if not self._ending or not self.done:
            raise ValueError("the answer broke off")
        message = {"role": "assistant", "content": "".join(self._texts)}
        choice = {"message": message, "finish_reason": self._ending}
        return self._about | {"choices": [choice]}

    def _read(self, data: bytes) -> None:
        if data.startswith(b"[DONE]"):
            self.done = True
            return
        row = read_answer(data)
        if not isinstance(row, dict):
            raise ValueError("the answer is no chat completion")
        if row.get("error"):
            raise ValueError(f"the endpoint says: {row['error']}"[:200])
        self._about |= {k: row[k] for k in ("model", "usage") if row.get(k)}
        choices = row.get("choices")
        if not choices:
            return
        try:
            text = (choices[0].get("delta") or {}).get("content")
            ending = choices[0].get("finish_reason")
        except (KeyError, TypeError, AttributeError):
            raise ValueError("the answer is no chat completion") from None
        if text is not None and not isinstance(text, str):
            raise ValueError("the answer holds no text")
        self._ending = str(ending or self._ending)
        if text:
            self.first = self.clock() if self.first is None else self.first
            self._texts.append(text)
