"""The seam of generation: token ids in, deltas out, each stream ending in an `Ending`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class Ending(Enum):
    """How an answer ended. Never a bool: a full window and a stop token are different news."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Delta:
    """The next token, or the ending of the stream (then `token` is None)."""

    token: int | None
    ending: Ending | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose the next token. Temperature 0 takes the likeliest."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_new_tokens: int = 256


class Engine(Protocol):
    """Anything that continues token ids."""

    def stream(
        self, prompt: Sequence[int], sampling: Sampling, stop: frozenset[int]
    ) -> Iterator[Delta]: ...
