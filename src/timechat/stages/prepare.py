"""`prepare`: files of rows to a folder of clean, split conversations with a card.

The verbs are here: read, clean, split, count, write. How a file is read, a row judged and a split
drawn is `data`'s.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timechat.conversation import Conversation
from timechat.data.clean import HARMLESS, Drop, clean, cleaning_steps, text_cleaning_steps
from timechat.data.describe import describe
from timechat.data.locate import PREPARED_CARD
from timechat.data.sources import Source, open_sources
from timechat.data.split import Split, count_overlap, split
from timechat.errors import DataError, RunError
from timechat.recipe import Data
from timechat.records import DataCard, Touched
from timechat.store import build_folder, read_json, read_lines, sha256, write_json, write_lines

SPLITS = ("train", "validation", "test")
FILES = frozenset({PREPARED_CARD, "dropped.jsonl", *(f"{name}.jsonl" for name in SPLITS)})

Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """A prepared folder and what is in it."""

    folder: Path
    card: DataCard
    train: tuple[Conversation, ...]
    validation: tuple[Conversation, ...]
    test: tuple[Conversation, ...]


@dataclass(slots=True)
class _Intake:
    """What reading has counted so far, over all files."""

    rows_in: int = 0
    reasons: Counter[str] = field(default_factory=Counter[str])
    edited: Counter[str] = field(default_factory=Counter[str])
    touched: list[Touched] = field(default_factory=list[Touched])
    sources: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])


def prepare(data: Data, out: Path, say: Say) -> Prepared:
    """Read, clean and split the rows of `data` and leave them in `out`.

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
    intake = _Intake()
    sources = _open(data)
    train, validation, test = (_read(sources[name], name, data, intake, say) for name in SPLITS)
    _check_dropped(data.max_dropped, intake)
    for name, rows in zip(SPLITS, (train, validation, test), strict=True):
        if sources[name] and not rows:
            names = ", ".join(source.name for source in sources[name])
            raise DataError(f"no usable {name} row in {names}: " + _top_reasons(intake))
    parts = split(
        train,
        validation if sources["validation"] else None,
        test if sources["test"] else None,
        data.seed,
    )
    return _write(data, out, parts, intake, say)


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
        parts = [
            tuple(Conversation.from_dict(row) for row in read_lines(folder / f"{name}.jsonl"))
            for name in SPLITS
        ]
    except (OSError, KeyError, TypeError, ValueError, RunError) as error:
        raise DataError(f"{folder} is damaged, prepare it again: {error}") from None
    return Prepared(folder, card, *parts)


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


def _read(
    sources: list[Source], name: str, data: Data, intake: _Intake, say: Say
) -> tuple[Conversation, ...]:
    """The clean rows of `sources`, which are the files of one split."""
    rows: list[Conversation] = []
    steps = cleaning_steps(data.system)
    text_steps = text_cleaning_steps()
    for source in sources:
        for line in describe(source):
            say(line)
        before = len(rows), intake.rows_in
        for row in source.rows():
            intake.rows_in += 1
            chosen = text_steps if source.shape == "text" else steps
            verdict = row.found if isinstance(row.found, Drop) else clean(row.found, chosen)
            if isinstance(verdict, Drop):
                intake.reasons[verdict.reason] += 1
                intake.touched.append(
                    Touched(source.name, row.line, "dropped", verdict.reason, verdict.detail)
                )
                continue
            kept, edits = verdict
            rows.append(kept.with_system(data.system))
            intake.edited.update(edit.reason for edit in edits)
            if edits:
                reason = "+".join(edit.reason for edit in edits)
                detail = "; ".join(edit.detail for edit in edits)
                intake.touched.append(Touched(source.name, row.line, "edited", reason, detail))
        _note(source, name, len(rows) - before[0], intake.rows_in - before[1], intake, say)
    return tuple(rows)


def _note(source: Source, split_name: str, kept: int, rows: int, intake: _Intake, say: Say) -> None:
    """Put what is known of a file on the card, and say it."""
    notes = {"split": split_name, "rows": rows, "kept": kept, "dropped": rows - kept}
    notes |= source.notes | {"sha256": sha256(source.path)}
    key = source.name
    while key in intake.sources:
        key += f" ({split_name})"
    intake.sources[key] = notes
    text = f"{source.name}: {rows} rows, {kept} kept"
    for kind in ("ignored_keys", "ignored_columns"):
        if ignored := source.notes.get(kind):
            text += f"; {kind.replace('_', ' ')}: {', '.join(ignored)}"
    say(text)


def _check_dropped(max_dropped: float, intake: _Intake) -> None:
    """Raise DataError when more of the rows are bad than `max_dropped` allows."""
    harmless = sum(intake.reasons[reason] for reason in HARMLESS)
    bad = intake.reasons.total() - harmless
    rows = intake.rows_in - harmless
    if bad > max_dropped * rows:
        raise DataError(
            f"{bad} of {rows} rows cannot be used, {bad / rows:.1%}; data.max_dropped allows "
            f"{max_dropped:.0%}. Most frequent: {_top_reasons(intake)}. Mend these rows, or raise "
            "data.max_dropped"
        )


def _top_reasons(intake: _Intake) -> str:
    """The three most frequent reasons, each with its first row."""
    ranked = [r for r in intake.reasons.most_common() if r[0] not in HARMLESS]
    ranked = ranked or intake.reasons.most_common()
    shown: list[str] = []
    for reason, count in ranked[:3]:
        row = next(t for t in intake.touched if t.reason == reason and t.action == "dropped")
        detail = f": {row.detail}" if row.detail else ""
        shown.append(f"{reason} × {count} (first at {row.source} line {row.line}{detail})")
    return "; ".join(shown) or "it holds no rows"


def _write(data: Data, out: Path, parts: Split, intake: _Intake, say: Say) -> Prepared:
    rows = {"train": parts.train, "validation": parts.validation, "test": parts.test}
    overlap = {name: count_overlap(rows[name], parts.train) for name in SPLITS[1:]}
    for name, count in overlap.items():
        if count:
            say(
                f"{count} of {len(rows[name])} {name} questions stand word for word in the "
                "training rows: their scores say little about new questions"
            )
    with build_folder(out) as folder:
        for name in SPLITS:
            write_lines(folder / f"{name}.jsonl", (row.to_dict() for row in rows[name]))
        write_lines(folder / "dropped.jsonl", intake.touched)
        card = DataCard(
            rows_in=intake.rows_in,
            rows_kept=sum(len(part) for part in rows.values()),
            rows_dropped=intake.reasons.total(),
            reasons=_sorted(intake.reasons),
            edited=_sorted(intake.edited),
            splits={name: len(part) for name, part in rows.items()},
            groups={name: _count_groups(part) for name, part in rows.items()},
            overlap=overlap,
            sources=intake.sources,
            digest=_digest(folder),
            seed=data.seed,
            system=data.system,
        )
        assert card.closes, "a row was neither kept nor dropped"
        write_json(folder / PREPARED_CARD, card)
    return Prepared(out, card, parts.train, parts.validation, parts.test)


def _count_groups(rows: Iterable[Conversation]) -> int:
    """How many clusters there are; a row without a group is its own."""
    return len({row.cluster for row in rows})


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(counts.most_common())


def _digest(folder: Path) -> str:
    """One SHA-256 for the three split files: of their names and their own SHA-256."""
    parts = {name: sha256(folder / f"{name}.jsonl") for name in SPLITS}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
