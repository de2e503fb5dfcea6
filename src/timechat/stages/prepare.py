"""`prepare`: files of rows to a folder of clean, split conversations with a card.

The order of things, and what is written. Rows are read by `stages.intake` and sorted by
`stages.sorting`; how a file is read, a row judged and a split drawn is `data`'s.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from timechat.conversation import Conversation
from timechat.data.describe import describe
from timechat.data.locate import PREPARED_CARD
from timechat.data.prose import as_question
from timechat.data.sources import Source, open_sources
from timechat.data.steps import Count
from timechat.errors import DataError, RunError
from timechat.recipe import Data
from timechat.records import DataCard
from timechat.stages.intake import Intake, Pool, Say
from timechat.stages.sorting import Sorted, sort_rows
from timechat.store import append_rows, build_folder, read_json, read_lines, sha256, write_json

SPLITS = ("train", "validation", "test")
FILES = frozenset({PREPARED_CARD, "dropped.jsonl", *(f"{name}.jsonl" for name in SPLITS)})


@dataclass(frozen=True)
class Prepared:
    """A prepared folder and its card; the rows are read when they are asked for."""

    folder: Path
    card: DataCard

    @cached_property
    def train(self) -> tuple[Conversation, ...]:
        return self._rows("train")

    @cached_property
    def validation(self) -> tuple[Conversation, ...]:
        return self._rows("validation")

    @cached_property
    def test(self) -> tuple[Conversation, ...]:
        return self._rows("test")

    def first(self, count: int) -> list[Conversation]:
        """The first training rows, without reading the others."""
        return [row for row, _ in zip(self._read("train"), range(count), strict=False)]

    def _rows(self, name: str) -> tuple[Conversation, ...]:
        return tuple(self._read(name))

    def _read(self, name: str) -> Iterator[Conversation]:
        try:
            for row in read_lines(self.folder / f"{name}.jsonl"):
                yield Conversation.from_dict(row)
        except (OSError, KeyError, TypeError, ValueError, RunError) as error:
            raise DataError(f"{self.folder} is damaged, prepare it again: {error}") from None


def prepare(data: Data, out: Path, say: Say, count: Count | None = None) -> Prepared:
    """Read, clean and split the rows of `data` and leave them in `out`.

    `count` tells the tokens of a conversation, where `data.clean.max_tokens` wants them counted.
    Raises DataError before anything is written; `out` is there in full or not at all.
    """
    if data.prepared is not None:
        if data.train or data.validation or data.test:
            raise DataError(
                "data.prepared stands instead of data.train, data.validation and data.test: "
                "give one or the other"
            )
        return load_prepared(Path(data.prepared))
    if not data.train:
        raise DataError("no training rows: give data.train at least one file")
    _check_out(out)
    sources = _open(data)
    with build_folder(out) as folder:
        intake = Intake(data, folder, count, say)
        pools = {name: Pool(folder / f"{name}.rows") for name in SPLITS}
        try:
            card = _prepare(data, folder, sources, pools, intake)
        finally:
            intake.close()
            for name, pool in pools.items():
                pool.close()
                (folder / f"{name}.rows").unlink(missing_ok=True)
        write_json(folder / PREPARED_CARD, card)
    return Prepared(out, card)


def _prepare(
    data: Data,
    folder: Path,
    sources: dict[str, list[Source]],
    pools: dict[str, Pool],
    intake: Intake,
) -> DataCard:
    for name in SPLITS:
        intake.read(sources[name], name, pools[name])
    intake.check_dropped()
    for name in SPLITS:
        if sources[name] and not len(pools[name]):
            names = ", ".join(source.name for source in sources[name])
            raise DataError(f"no usable {name} row in {names}: " + intake.top_reasons())
    given = {name for name in SPLITS if sources[name]}
    found = sort_rows(pools, given, intake, folder)
    intake.check_dropped()
    intake.say_found()
    counts = _write(folder, pools, found)
    intake.close()
    return _card(data, folder, pools, intake, found, counts)


def recognised(data: Data, say: Say) -> dict[str, dict[str, Any]]:
    """What each file of `data` was recognised as, said with its first rows; nothing is written."""
    found: dict[str, dict[str, Any]] = {}
    for name, sources in _open(data).items():
        for source in sources:
            for line in describe(source):
                say(line)
            found[source.name] = {"split": name} | source.notes
    return found


def load_prepared(folder: Path) -> Prepared:
    """Read a folder that `prepare` left. Raises DataError when it is none or was changed since."""
    if not (folder / PREPARED_CARD).is_file():
        raise DataError(
            f"{folder} is no prepared folder (no {PREPARED_CARD} in it): "
            "make one with `timechat prepare`"
        )
    try:
        card = DataCard(**read_json(folder / PREPARED_CARD))
        if _digest(folder) != card.digest:
            raise DataError(
                f"the rows in {folder} are not those of its {PREPARED_CARD} (digest differs): "
                "prepare them again instead of editing them"
            )
    except (OSError, KeyError, TypeError, ValueError, RunError) as error:
        raise DataError(f"{folder} is damaged, prepare it again: {error}") from None
    return Prepared(folder, card)


def rows_of_run(run: Path) -> Path:
    """The prepared folder of a run: its own, or the one that it refers to."""
    reference = run / "data" / "prepared.json"
    return Path(read_json(reference)["path"]) if reference.is_file() else run / "data"


def _check_out(out: Path) -> None:
    """`out` is free, or holds what `prepare` writes and nothing else, which is replaced."""
    if not (out.exists() or out.is_symlink()):
        return
    if not (out / PREPARED_CARD).is_file():
        raise DataError(
            f"{out} exists and is not a prepared folder (no {PREPARED_CARD}): name a folder that "
            "does not exist yet"
        )
    strangers = sorted(p.name for p in out.iterdir() if p.name not in FILES)
    if strangers or out.is_symlink():
        why = f"also holds {', '.join(strangers[:5])}" if strangers else "is a link"
        raise DataError(f"{out} {why}, and would be replaced: name another folder")


def _open(data: Data) -> dict[str, list[Source]]:
    """The files of each split. A folder of training rows that comes split stays as split, but
    files that the recipe names for a split go before those of such a folder."""
    given = {"validation": data.validation, "test": data.test}
    sources = {name: open_sources(names, data) for name, names in given.items()}
    sources["train"] = []
    for source in open_sources(data.train, data):
        if given.get(source.split or ""):
            raise DataError(
                f"{source.name} calls itself {source.split} rows, and data.{source.split} names "
                "others: name the training files one by one"
            )
        sources[source.split or "train"].append(source)
    return sources


@dataclass(slots=True)
class _Counts:
    """What was written: rows and clusters of each split, rows of each file, tokens in words."""

    rows: dict[str, int]
    groups: dict[str, int]
    kept: Counter[tuple[str, str]]
    words: dict[str, int]


def _write(folder: Path, pools: dict[str, Pool], found: Sorted) -> _Counts:
    """Every row that is left to the file of its split."""
    clusters: dict[str, set[int]] = {name: set() for name in SPLITS}
    rows: Counter[str] = Counter()
    kept: Counter[tuple[str, str]] = Counter()
    words: list[int] = []

    def split_rows(wanted: str) -> Iterator[Conversation]:
        for name in SPLITS:
            pool = pools[name]
            for number, row in pool.rows():
                side = SPLITS[found.sides[number]] if name == "train" else name
                if side != wanted:
                    continue
                rows[side] += 1
                kept[name, pool.files[pool.file[number]]] += 1
                clusters[side].add(hash(row.cluster))
                words.append(pool.words[number])
                yield _final(row, number, side, found)

    for name in SPLITS:
        append_rows(folder / f"{name}.jsonl", (row.to_dict() for row in split_rows(name)))
    return _Counts(
        {name: rows[name] for name in SPLITS},
        {name: len(clusters[name]) for name in SPLITS},
        kept,
        _quantiles(words),
    )


def _final(row: Conversation, number: int, side: str, found: Sorted) -> Conversation:
    """The row as its split needs it: weighed for training, asked where it is a held-out text."""
    if side == "test" and row.is_text:
        return as_question(row)
    if side == "train" and found.weights:
        weight = found.weights[int(found.classes[number])]
        return row.with_messages(
            tuple(
                replace(m, weight=round(m.weight * weight, 6)) if m.role == "assistant" else m
                for m in row.messages
            )
        )
    return row


def _card(
    data: Data,
    folder: Path,
    pools: dict[str, Pool],
    intake: Intake,
    found: Sorted,
    counts: _Counts,
) -> DataCard:
    for place, key in intake.keys.items():
        notes, kept = intake.sources[key], counts.kept[place]
        notes |= {"kept": kept, "dropped": notes["rows"] - kept}
    card = DataCard(
        rows_in=intake.rows_in,
        rows_kept=sum(counts.rows.values()),
        rows_dropped=intake.reasons.total(),
        reasons=_sorted(intake.reasons),
        edited=_sorted(intake.edited),
        splits=counts.rows,
        groups=counts.groups,
        overlap=found.overlap,
        sources=intake.sources,
        digest=_digest(folder),
        seed=data.seed,
        system=data.system,
        found=_found(intake),
        words=counts.words,
        languages=_languages(pools.values()),
        near={"rows": found.near_rows, "clusters": found.clusters},
        shared_answers=found.shared_answers,
        general_overlap=found.general,
        bias=found.bias,
    )
    assert card.closes, "a row was neither kept nor dropped"
    return card


def _found(intake: Intake) -> dict[str, dict[str, Any]]:
    """What was only reported: counts, and the first places."""
    return {
        reason: {**_sorted(counts), "first": intake.places[reason]}
        for reason, counts in intake.found.items()
    }


def _languages(pools: Iterable[Pool]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for pool in pools:
        names = list(pool.language.names)
        counts.update(names[n] for n in pool.language.numbers if n >= 0)
    return _sorted(counts)


def _quantiles(words: list[int]) -> dict[str, int]:
    """How long the rows are, in words: the median, and how long the longest are."""
    if not words:
        return {}
    shares = {"median": 0.5, "p90": 0.9, "p99": 0.99, "longest": 1.0}
    return {name: int(np.quantile(words, share)) for name, share in shares.items()}


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(counts.most_common())


def _digest(folder: Path) -> str:
    """One SHA-256 for the three split files: of their names and their own SHA-256."""
    parts = {name: sha256(folder / f"{name}.jsonl") for name in SPLITS}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
