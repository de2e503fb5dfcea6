"""The upper seam: messages in, pieces of text out.

A `Responder` is an engine with a chat format around it (`local`), or an endpoint elsewhere
(`hosted`). HTTP and conversations that last are built on top.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from timechat.engine.calls import Call, Form
from timechat.engine.protocol import (
    Capabilities,
    Ending,
    Sampling,
)
from timechat.errors import UserError


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked of a responder: a conversation, or a bare `prompt` to continue.

    `messages` are in OpenAI's shape. `max_new_tokens` None is whatever the window leaves;
    `shorten` lets whole old turns be left out of a conversation that outgrew the window.
    """

    messages: Sequence[Mapping[str, Any]] = ()
    prompt: str | Sequence[int] | None = None
    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    schema: str | None = None
    logprobs: int | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    shorten: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and said."""

    prompt: int = 0
    completion: int = 0


@dataclass(frozen=True, slots=True)
class Said:
    """One token of an answer as text, with its log-probability and the likeliest others."""

    text: str
    bytes: bytes
    logprob: float
    top: tuple[tuple[str, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer. The first one of a stream is empty: the conversation was taken in.
    The last one has the `ending`."""

    text: str = ""
    said: tuple[Said, ...] = ()
    calls: tuple[Call, ...] = ()
    ending: Ending | None = None
    usage: Usage = Usage()
    notice: str = ""
    detail: str = ""


class ContextTooLongError(UserError):
    """The conversation does not leave room for the answer that was asked for."""

    @classmethod
    def counted(
        cls, prompt: int, answer: int, window: int, at_least: bool = False
    ) -> ContextTooLongError:
        about = "at least " if at_least else ""
        return cls(
            f"This model's maximum context length is {window} tokens, and {about}{prompt} in the"
            f" messages with {answer} for the answer make {prompt + answer}. Shorten the"
            " conversation or ask for fewer tokens."
        )


class UnsupportedError(UserError):
    """The engine cannot do what `param` asks."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class Scribe(Protocol):
    """Renders and tokenises, off the event loop."""

    stop_ids: frozenset[int]
    calls: Form
    """How the model writes tool calls."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
    ) -> list[int]: ...

    async def encode(self, text: str) -> list[int]: ...


class Grammar(Protocol):
    """Tries schemas before an engine sees them, off the event loop."""

    async def check(self, schema: str) -> None:
        """Raises UserError for one that answers cannot be held to."""
        ...

    async def stop(self) -> None: ...


class Responder(Protocol):
    """Anything that answers conversations."""

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def ready(self) -> bool: ...

    async def start(self) -> None: ...

    def reply(self, ask: Ask) -> AsyncGenerator[Piece]:
        """Yield an empty piece once the ask is taken in, then the answer; closing cancels.

        Raises ContextTooLongError, UnsupportedError, BusyError or EngineError before the first
        piece, and SchemaError there or, where it shows only while it answers, later.
        """
        ...

    async def drain(self, deadline_s: float) -> bool: ...

    async def stop(self) -> None: ...
