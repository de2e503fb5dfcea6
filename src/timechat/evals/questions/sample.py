"""A part of the general suite that stands for the whole: the same share of every group.

The draw is fixed: the same part for every model, and a smaller part lies within a larger one.
How large a part a run can afford is decided in `stages.evaluating.budget`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from timechat.data.pack import Example
from timechat.evals.questions.suite import OWN, Choice, General

SEED = "timechat-general-1"

Item = TypeVar("Item", Choice, Example)


def take_share(general: General, share: float) -> General:
    """`share` of the choices of each group, rounded up, and as much of the watched texts; of the
    user's own questions always all."""
    if share >= 1:
        return general
    shipped = [c for c in general.choices if c.tag != OWN]
    own = [c for c in general.choices if c.tag == OWN]
    choices = (*_pick(shipped, lambda c: (c.tag, c.cluster), share), *own)
    return General(choices, _texts(general.prose, share), _texts(general.answers, share))


def keep_only(
    general: General, choices: Iterable[str], prose: Iterable[str], answers: Iterable[str]
) -> General | None:
    """The questions with these ids, in the suite's order; None where one is no question of it."""
    kept = General(
        _named(general.choices, choices),
        _named(general.prose, prose),
        _named(general.answers, answers),
    )
    wanted = (choices, prose, answers)
    found = (kept.choices, kept.prose, kept.answers)
    complete = all(len(set(w)) == len(f) for w, f in zip(wanted, found, strict=True))
    return kept if complete else None


def _pick(
    items: Sequence[Item], group_of: Callable[[Item], object], share: float
) -> tuple[Item, ...]:
    groups: dict[object, list[str]] = {}
    for item in items:
        groups.setdefault(group_of(item), []).append(item.id)
    kept: set[str] = set()
    for names in groups.values():
        kept |= set(sorted(names, key=_draw)[: math.ceil(round(share * len(names), 6))])
    return tuple(item for item in items if item.id in kept)


def _texts(rows: Sequence[Example], share: float) -> tuple[Example, ...]:
    return _pick(rows, lambda _: "", share)


def _named(items: Sequence[Item], names: Iterable[str]) -> tuple[Item, ...]:
    wanted = set(names)
    return tuple(item for item in items if item.id in wanted)


def _draw(name: str) -> str:
    return hashlib.sha256(f"{SEED}:{name}".encode()).hexdigest()
