"""The second pass of `prepare`: what needs all rows at once, in order.

Twins of evaluation rows refused or dropped, near-duplicates and label noise dropped where asked,
training rows split off, and what is left of them balanced. Rows were read by `intake`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from timechat.conversation import Conversation, Message
from timechat.data.cleaning.bias import bias_table, is_labelled, sample_evenly, weights_evenly
from timechat.data.cleaning.noise import find_label_noise
from timechat.data.splitting.links import Related, Twin, inside, relate
from timechat.data.splitting.minhash import Ints, gram_set, jaccard
from timechat.data.splitting.near import Askings, fold
from timechat.data.splitting.split import TEST, TRAIN, VALIDATION, Sides, assign
from timechat.errors import DataError
from timechat.records import Touched
from timechat.shipped import shipped
from timechat.stages.preparing.intake import Intake, Pool

SIDES = {"validation": VALIDATION, "test": TEST}
# The general suite is an evaluation set too: what it asks should not have been trained.
GENERAL = 3
SHOWN_TWINS = 3
SAME_ANSWER = 0.7


@dataclass(slots=True)
class Sorted:
    """Where every training row went, and what was found on the way."""

    sides: Sides
    weights: dict[int, float] = field(default_factory=dict[int, float])
    classes: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    overlap: dict[str, int] = field(default_factory=dict[str, int])
    shared_answers: dict[str, int] = field(default_factory=dict[str, int])
    general: int = 0
    near_rows: int = 0
    clusters: int = 0
    bias: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


def sort_rows(pools: dict[str, Pool], given: set[str], intake: Intake, folder: Path) -> Sorted:
    """Decide about every training row; the splits `given` are the user's own.

    Raises DataError when training rows ask what the user's own evaluation rows ask.
    """
    train, rules, seed = pools["train"], intake.data.clean, intake.data.seed
    askings = Askings(folder)
    try:
        _ask(pools, askings)
        wants = {name: name not in given for name in SIDES}
        near = rules.near != "off"
        related = relate(len(train), _groups(train), askings, near, rules.near == "drop")
        out = Sorted(np.zeros(len(train), np.int8), near_rows=related.num_near)
        _judge_twins(related.twins, pools, intake, out)
        if rules.near == "drop":
            _drop_near(related, train, intake)
        labels = train.label.array()
        labelled = is_labelled(labels[train.alive()])
        if rules.label_noise != "off":
            _judge_labels(train, labels if labelled else None, intake)
        alive = train.alive()
        out.clusters = len(np.unique(related.clusters[alive]))
        marks = np.asarray(train.mark)
        out.sides[alive] = assign(
            related.clusters[alive],
            marks[alive],
            labels[alive] if labelled else None,
            wants["validation"],
            wants["test"],
            seed,
        )
        ours = {side for name, side in SIDES.items() if wants[name]}
        _send_home(related.clusters, askings, train, ours, out)
        if labelled:
            out.bias = _bias(train, labels)
        if rules.balance != "off":
            _balance(train, labelled, intake, out)
        return out
    finally:
        askings.close()


def _ask(pools: dict[str, Pool], askings: Askings) -> None:
    for name, pool in pools.items():
        for number, row in pool.rows():
            askings.add(row, number, SIDES.get(name, TRAIN))
    with shipped("general/items.jsonl").open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            question = Message("user", json.loads(line)["question"])
            askings.add(Conversation("", (question,)), number, GENERAL)


def _groups(pool: Pool) -> Iterator[tuple[int, int]]:
    first: dict[int, int] = {}
    for number, group in enumerate(pool.group.numbers):
        if group >= 0 and first.setdefault(group, number) != number:
            yield first[group], number


def _judge_twins(twins: list[Twin], pools: dict[str, Pool], intake: Intake, out: Sorted) -> None:
    """Refuse, drop or allow training rows that ask what an evaluation row asks."""
    train, action = pools["train"], intake.data.overlap
    own = [twin for twin in twins if twin.side != GENERAL]
    held = {(twin.side, twin.held_out) for twin in own}
    if own and action == "refuse":
        raise DataError(_refusal(own, pools))
    if action == "drop":
        for twin in own:
            if not train.gone[twin.train]:
                pool = pools[_name(twin.side)]
                _drop(train, twin.train, "overlap", _beside(twin, pool), intake)
        held = set()
    for name, side in SIDES.items():
        out.overlap[name] = sum(s == side for s, _ in held)
        if out.overlap[name]:
            intake.say(
                f"{out.overlap[name]} of {len(pools[name])} {name} questions stand in the training "
                "rows: their scores say little about new questions (data.overlap is allow)"
            )
    out.general = len({twin.held_out for twin in twins if twin.side == GENERAL})
    if out.general:
        intake.say(
            f"{out.general} general questions of the retention check stand in the training rows: "
            "it will look a little better than it is"
        )
    for name in SIDES:
        out.shared_answers[name] = _shared_answers(train, pools[name])


def _refusal(twins: list[Twin], pools: dict[str, Pool]) -> str:
    train = pools["train"]
    counts = Counter(side for side, _ in {(twin.side, twin.held_out) for twin in twins})
    what = " and ".join(
        f"{count} of {len(pools[_name(side)])} {_name(side)} rows"
        for side, count in sorted(counts.items())
    )
    shown = "; ".join(
        f"{pools[_name(twin.side)].place(twin.held_out)} and {train.place(twin.train)} ({twin.how})"
        for twin in twins[:SHOWN_TWINS]
    )
    return (
        f"{what} ask what training rows ask, so their scores would prove nothing: {shown}. "
        "Set data.overlap to drop (leaves those training rows out) or allow (trains on them and "
        "says so)"
    )


def _name(side: int) -> str:
    return next(name for name, number in SIDES.items() if number == side)


def _beside(twin: Twin, pool: Pool) -> str:
    return f"asks what {pool.place(twin.held_out)} asks ({twin.how})"


def _drop(pool: Pool, number: int, reason: str, detail: str, intake: Intake) -> None:
    pool.gone[number] = 1
    source = pool.files[pool.file[number]]
    intake.touch(Touched(source, pool.line[number], "dropped", reason, detail))


def _drop_near(related: Related, train: Pool, intake: Intake) -> None:
    """Drop rows that ask nearly what an earlier row asks and are answered nearly the same."""
    for later, earlier, similarity in sorted(related.pairs):
        if train.gone[later] or train.gone[earlier]:
            continue
        if _same_answer(train[later], train[earlier]):
            detail = f"of {train.place(earlier)}, similarity {similarity:.2f}"
            _drop(train, later, "near_duplicate", detail, intake)


def _same_answer(one: Conversation, other: Conversation) -> bool:
    said = [
        fold("\n".join(m.content for m in row.messages if m.role == "assistant"))
        for row in (one, other)
    ]
    return said[0] == said[1] or jaccard(*map(gram_set, said)) >= SAME_ANSWER


def _judge_labels(train: Pool, labels: Ints | None, intake: Intake) -> None:
    """Report or drop rows whose label the others contradict."""
    if labels is None:
        intake.say("data.clean.label_noise: the answers of these rows are no labels; not judged")
        return
    rows = [(n, row) for n, row in train.rows() if labels[n] >= 0]
    texts = ["\n".join(m.content for m in row.messages if m.role == "user") for _, row in rows]
    names = list(train.label.names)
    mine = labels[[number for number, _ in rows]]
    for place, likelier in find_label_noise(texts, mine, intake.data.seed):
        number, row = rows[place]
        detail = f"{row.reference!r} is likely {names[likelier]!r}"
        if intake.data.clean.label_noise == "drop":
            _drop(train, number, "label_noise", detail, intake)
        else:
            intake.note("label_noise", detail, train.place(number))


def _send_home(clusters: Ints, askings: Askings, train: Pool, ours: Set[int], out: Sorted) -> None:
    """Clusters that were held out, and whose words stand inside a training row or the reverse, go
    back to the training rows: none of them is worth a leak. Rows on any other side than `ours` come
    from a file of their own, and stay."""
    if not out.sides.any():
        return
    askings.set_sides(out.sides)
    back = {
        int(clusters[twin.held_out])
        for twin in inside(askings)
        if twin.side in ours
        and out.sides[twin.held_out] == twin.side
        and not train.gone[twin.train]
    }
    if back:
        out.sides[np.isin(clusters, list(back))] = TRAIN


def _bias(train: Pool, labels: Ints) -> list[dict[str, Any]]:
    alive = train.alive()
    languages = list(train.language.names)
    others = {
        "source": [train.files[train.file[i]] for i in alive.tolist()],
        "language": [
            languages[n] if n >= 0 else "" for n in train.language.array()[alive].tolist()
        ],
    }
    names = list(train.label.names)
    return bias_table(labels[alive], names, np.asarray(train.words)[alive], others)


def _balance(train: Pool, labelled: bool, intake: Intake, out: Sorted) -> None:
    """Even the training rows out over labels, languages or sources."""
    rules = intake.data.clean
    if rules.balance_by == "label" and not labelled:
        raise DataError(
            "data.clean.balance: the answers of these rows are no labels; "
            "set data.clean.balance_by to language or source"
        )
    columns: dict[str, NDArray[np.int64]] = {
        "label": train.label.array(),
        "language": train.language.array(),
        "source": np.asarray(train.file, dtype=np.int64),
    }
    classes = columns[rules.balance_by]
    mine = np.array([i for i in train.alive().tolist() if out.sides[i] == TRAIN], dtype=np.int64)
    if rules.balance == "weight":
        out.classes, out.weights = classes, weights_evenly(classes[mine])
        return
    for place in sample_evenly(classes[mine], np.asarray(train.mark)[mine], intake.data.seed):
        detail = f"one too many of its {rules.balance_by}"
        _drop(train, int(mine[place]), "balanced", detail, intake)


def _shared_answers(train: Pool, pool: Pool) -> int:
    """How many evaluation rows have an answer that a training row has: by right, and worth
    knowing."""
    names = set(train.label.names)
    theirs = list(pool.label.names)
    return sum(number >= 0 and theirs[number] in names for number in pool.label.numbers)
