"""What finished conversations left is found, shared, taken out and put back, and nothing leaks."""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from timechat.engine.prefixes import TAIL, Prefixes

SYSTEM = list(range(100, 160))
FIRST = [*SYSTEM, *range(200, 260)]
SECOND = [*SYSTEM, *range(300, 360)]


class Table:
    """A cache that knows which tokens each sequence holds."""

    def __init__(self) -> None:
        self.held: dict[int, list[int]] = {}
        self.loads = 0
        self.full = False

    def read(self, sequence: int, ids: list[int]) -> None:
        self.held[sequence] = list(ids)

    def cut(self, sequence: int, start: int) -> bool:
        self.held[sequence] = self.held.get(sequence, [])[:start]
        return True

    def share(self, source: int, target: int, end: int) -> None:
        assert not self.held.get(target)
        self.held[target] = self.held[source][:end]

    def save(self, sequence: int) -> NDArray[np.uint8]:
        return np.frombuffer(json.dumps(self.held[sequence]).encode(), dtype=np.uint8)

    def load(self, sequence: int, state: NDArray[np.uint8]) -> bool:
        assert not self.held.get(sequence)
        if self.full:
            return False
        self.loads += 1
        self.held[sequence] = json.loads(state.tobytes())
        return True

    @property
    def cells(self) -> int:
        return sum(map(len, self.held.values()))


def say(table: Table, kept: Prefixes, prompt: list[int], answer: int = 5) -> int:
    """One conversation's turn; how many tokens of its prompt were there already."""
    sequence, held = kept.begin(prompt, {})
    assert table.held.get(sequence, []) == prompt[:held]
    ids = [*prompt, *range(answer)]
    table.read(sequence, ids)
    kept.end(sequence, ids)
    return held


def test_a_following_turn_goes_on_in_place() -> None:
    table = Table()
    kept = Prefixes(table, 4, 10_000)
    assert say(table, kept, FIRST) == 0
    longer = [*FIRST, *range(5), 7, 8]
    assert say(table, kept, longer) == len(longer) - 2
    assert table.loads == 0
    assert table.cells == len(longer) + 5, "the old one is held in the new one only"


def test_the_same_question_reads_its_last_token_again() -> None:
    table = Table()
    kept = Prefixes(table, 4, 10_000)
    say(table, kept, FIRST)
    assert say(table, kept, FIRST) == len(FIRST) - 1


def test_what_ended_leaves_the_cells_when_another_begins_and_comes_back() -> None:
    table = Table()
    kept = Prefixes(table, 4, 10_000)
    say(table, kept, FIRST)
    say(table, kept, SECOND)
    assert table.cells == len(SECOND) + 5, "the first one was parked"
    longer = [*FIRST, *range(5), 7, 8]
    assert say(table, kept, longer) == len(FIRST) + 5
    assert table.loads == 1
    assert say(table, kept, [*SECOND, *range(5), 9]) == len(SECOND) + 5


def test_a_common_beginning_is_shared_without_losing_whose_it_was() -> None:
    table = Table()
    kept = Prefixes(table, 4, 10_000)
    say(table, kept, FIRST)
    assert say(table, kept, SECOND) == len(SYSTEM)
    assert say(table, kept, [*FIRST, *range(5), 7]) == len(FIRST) + 5


def test_running_conversations_share_what_they_have_read() -> None:
    table = Table()
    kept = Prefixes(table, 4, 10_000)
    one, _ = kept.begin(FIRST, {})
    table.read(one, FIRST[:80])
    other, held = kept.begin(SECOND, {one: FIRST[:80]})
    assert other != one
    assert held == len(SYSTEM)
    assert table.held[other] == SYSTEM


def test_parked_conversations_keep_within_their_budget() -> None:
    table = Table()
    kept = Prefixes(table, 4, 2 * len(FIRST) + 20)
    prompts = [[1000 * n, *range(1000 * n + 1, 1000 * n + len(FIRST))] for n in range(1, 6)]
    for prompt in prompts:
        say(table, kept, prompt)
    assert say(table, kept, [*prompts[0], 1]) == 0, "the oldest was dropped"
    assert say(table, kept, [*prompts[4], *range(5), 1]) == len(FIRST) + 5


def test_a_cache_that_is_full_reads_again_instead() -> None:
    table = Table()
    kept = Prefixes(table, 4, 10_000)
    say(table, kept, FIRST)
    say(table, kept, SECOND)
    table.full = True
    longer = [*FIRST, *range(5), 7]
    sequence, held = kept.begin(longer, {})
    assert (held, table.held.get(sequence, [])) in [(0, []), (len(SYSTEM), SYSTEM)]


def test_no_sequence_is_ever_lost() -> None:
    table = Table()
    kept = Prefixes(table, 3, 10_000)
    rng = np.random.default_rng(0)
    for number in range(200):
        opening = FIRST if number % 2 else SECOND
        ids = [*opening[: int(rng.integers(1, 120))], *rng.integers(0, 9, 3).tolist()]
        sequences = [kept.begin(ids, {})[0] for _ in range(int(rng.integers(1, 4)))]
        assert len(set(sequences)) == len(sequences)
        for sequence in sequences:
            table.read(sequence, ids)
            kept.end(sequence, ids)
    assert kept.has_free
    assert sum(map(len, table.held.values())) <= 3 * (120 + TAIL)
