"""What finished conversations left in llama.cpp's cache, for those that begin with the same words.

Whoever has just ended stays where it is (*idle*), so that one who talks alone pays nothing. As soon
as somebody else begins, idle ones are taken out of the cache (*parked* in memory of our own), where
they cost nobody's attention anything; to be put back is a copy. Running ones share what they have
read so far.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# A kept conversation that loses no more than this to a new one is gone on with, not copied; and
# what is shorter than this is read again rather than kept.
TAIL = 32

Ids = tuple[int, ...]


class Cells(Protocol):
    """The cache that the sequences lie in (`llamacpp.LlamaContext`)."""

    def cut(self, sequence: int, start: int) -> bool: ...

    def share(self, source: int, target: int, end: int) -> None: ...

    def save(self, sequence: int) -> NDArray[np.uint8]: ...

    def load(self, sequence: int, state: NDArray[np.uint8]) -> bool: ...


class Prefixes:
    """Sequences that are free, idle ones, and parked states of at most `budget` tokens in all."""

    def __init__(self, cells: Cells, num_sequences: int, budget: int) -> None:
        self._cells = cells
        self._budget = budget
        self._free = list(range(num_sequences))
        self._idle: OrderedDict[Ids, int] = OrderedDict()
        self._parked: OrderedDict[Ids, NDArray[np.uint8]] = OrderedDict()

    @property
    def has_free(self) -> bool:
        return bool(self._free or self._idle)

    def begin(self, prompt: Sequence[int], running: Mapping[int, Sequence[int]]) -> tuple[int, int]:
        """A sequence for the prompt, and how many of its tokens that holds already.

        `running` are the sequences in use with the tokens they hold. The last token of a prompt is
        always read again: its logits choose the first word.
        """
        if not self._free:
            self._park_oldest()
        sequence = self._free.pop()
        most = len(prompt) - 1
        found = self._find(prompt, running)
        held = min(found[0], most)
        if held:
            held = self._fill(sequence, held, found)
        while self._idle:
            self._park_oldest()
        return sequence, held

    def end(self, sequence: int, ids: Sequence[int]) -> None:
        """Give a sequence back with the tokens that it holds."""
        key = tuple(ids)
        if len(key) < TAIL or key in self._idle:
            self._drop(sequence)
        else:
            self._idle[key] = sequence

    def _find(
        self, prompt: Sequence[int], running: Mapping[int, Sequence[int]]
    ) -> tuple[int, Ids, int | None]:
        """The most tokens shared, whose they are, and in which sequence (None: parked)."""
        best: tuple[int, Ids, int | None] = (0, (), None)
        for ids, sequence in self._idle.items():
            best = max(best, (common(ids, prompt), ids, sequence), key=_shared)
        for sequence, held in running.items():
            best = max(best, (common(held, prompt), (), sequence), key=_shared)
        for ids in self._parked:
            best = max(best, (common(ids, prompt), ids, None), key=_shared)
        return best

    def _fill(self, sequence: int, held: int, found: tuple[int, Ids, int | None]) -> int:
        _, ids, source = found
        if source is not None:
            self._cells.share(source, sequence, held)
            if ids and len(ids) - held <= TAIL:
                self._drop(self._idle.pop(ids))
            return held
        if held < TAIL or not self._cells.load(sequence, self._parked[ids]):
            return 0
        if len(ids) - held <= TAIL:
            del self._parked[ids]
        else:
            self._parked.move_to_end(ids)
        return held if self._cells.cut(sequence, held) else 0

    def _park_oldest(self) -> None:
        ids, sequence = self._idle.popitem(last=False)
        self._parked.pop(ids, None)
        self._parked[ids] = self._cells.save(sequence)
        self._drop(sequence)
        total = sum(map(len, self._parked))
        while total > self._budget:
            dropped, _ = self._parked.popitem(last=False)
            total -= len(dropped)

    def _drop(self, sequence: int) -> None:
        self._cells.cut(sequence, 0)
        self._free.append(sequence)


def _shared(found: tuple[int, Ids, int | None]) -> int:
    return found[0]


def common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for place, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return place
    return min(len(left), len(right))
