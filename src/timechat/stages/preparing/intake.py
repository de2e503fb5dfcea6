"""The first pass of `prepare`: every row read, judged, and kept on disk or written to the ledger.

Rows stream: what stays in memory of a row is a few numbers (`Pool`). What needs all rows at once,
near-duplicates, overlap, balance and the split, is `sorting`'s.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from timechat.conversation import Conversation
from timechat.data.cleaning.steps import Count, cleaning_steps
from timechat.data.cleaning.turns import fingerprint
from timechat.data.describe import describe
from timechat.data.sources import Source
from timechat.data.verdicts import HARMLESS, Drop, clean
from timechat.errors import DataError
from timechat.recipe import Data
from timechat.records import Touched
from timechat.store.files import sha256, to_json

Say = Callable[[str], None]
SHOWN_PLACES = 10
# An answer longer than this is no label, and beyond so many labels nothing is a label.
LABEL_CHARACTERS, MAX_LABELS = 100, 50_000
NONE = -1


class Pool:
    """The rows of one split that were kept so far, in order: on disk, with numbers in memory."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b")
        self._offsets = array("q", [0])
        self.files: list[str] = []
        self.file = array("i")
        self.line = array("q")
        self.mark = array("Q")
        self.words = array("i")
        self.group = _Names()
        self.label = _Names()
        self.language = _Names()
        self.gone = bytearray()

    def __len__(self) -> int:
        return len(self.gone)

    def add(self, row: Conversation, file: int, language: str) -> int:
        raw = json.dumps(row.to_dict(), ensure_ascii=False).encode() + b"\n"
        self._file.write(raw)
        self._offsets.append(self._offsets[-1] + len(raw))
        self.file.append(file)
        self.line.append(row.line)
        self.mark.append(fingerprint(row) & (1 << 64) - 1)
        self.words.append(sum(len(m.content.split()) for m in row.messages))
        self.group.append(row.group)
        self.label.append(_label(row))
        self.language.append(language)
        self.gone.append(0)
        return len(self.gone) - 1

    def __getitem__(self, number: int) -> Conversation:
        self._file.seek(self._offsets[number])
        raw = self._file.read(self._offsets[number + 1] - self._offsets[number])
        self._file.seek(0, 2)
        return Conversation.from_dict(json.loads(raw))

    def rows(self) -> Iterator[tuple[int, Conversation]]:
        """The rows that are still there, with their numbers."""
        self._file.flush()
        self._file.seek(0)
        for number, raw in enumerate(self._file):
            if not self.gone[number]:
                yield number, Conversation.from_dict(json.loads(raw))
        self._file.seek(0, 2)

    def place(self, number: int) -> str:
        return f"{self.files[self.file[number]]}:{self.line[number]}"

    def alive(self) -> NDArray[np.int64]:
        return np.flatnonzero(np.frombuffer(bytes(self.gone), np.uint8) == 0)

    def close(self) -> None:
        self._file.close()


class _Names:
    """A column of names as numbers; no name is `NONE`. Too many different ones are no names."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.numbers = array("i")

    def append(self, name: str) -> None:
        number = self.names.setdefault(name, len(self.names)) if name else NONE
        self.numbers.append(number)

    def array(self) -> NDArray[np.int64]:
        return np.asarray(self.numbers, dtype=np.int64)


def _label(row: Conversation) -> str:
    """The answer where it may be a label: short, and the only one of its row."""
    if row.is_text or sum(m.role == "assistant" for m in row.messages) != 1:
        return ""
    return row.reference if len(row.reference) <= LABEL_CHARACTERS else ""


class Intake:
    """What reading has counted so far, over all files, and the ledger of rows touched."""

    def __init__(self, data: Data, folder: Path, count: Count | None, say: Say) -> None:
        self.data = data
        self.say = say
        self._count = count
        self.rows_in = 0
        self.reasons: Counter[str] = Counter()
        self.edited: Counter[str] = Counter()
        self.found: dict[str, Counter[str]] = {}
        self.places: dict[str, list[str]] = {}
        self.sources: dict[str, dict[str, Any]] = {}
        self.keys: dict[tuple[str, str], str] = {}
        self.first: dict[str, Touched] = {}
        self._ledger = (folder / "dropped.jsonl").open("w", encoding="utf-8")

    def close(self) -> None:
        self._ledger.close()

    def touch(self, touched: Touched) -> None:
        """Count a row that was touched, and write it down."""
        if touched.action == "dropped":
            self.reasons[touched.reason] += 1
            self.first.setdefault(touched.reason, touched)
        self._ledger.write(json.dumps(to_json(touched), ensure_ascii=False) + "\n")

    def read(self, sources: Iterable[Source], name: str, pool: Pool) -> None:
        """Clean every row of `sources`, which are the files of one split, into `pool`."""
        rules, system = self.data.clean, self.data.system
        steps = cleaning_steps(rules, system, self._count)
        text_steps = cleaning_steps(rules, system, self._count, texts=True)
        for source in sources:
            for line in describe(source):
                self.say(line)
            chosen = text_steps if source.shape == "text" else steps
            before = len(pool), self.rows_in
            pool.files.append(source.name)
            for row in source.rows():
                self.rows_in += 1
                verdict = row.found if isinstance(row.found, Drop) else clean(row.found, chosen)
                if isinstance(verdict, Drop):
                    what = verdict.reason, verdict.detail
                    self.touch(Touched(source.name, row.line, "dropped", *what))
                else:
                    self._keep(verdict, source, pool)
            self._note(source, name, len(pool) - before[0], self.rows_in - before[1])

    def _keep(self, verdict: Any, source: Source, pool: Pool) -> None:
        row, edits, flags = verdict
        language = ""
        for flag in flags:
            if flag.reason == "language":
                language = flag.detail
            else:
                self.note(flag.reason, flag.detail, f"{source.name}:{row.line}")
        self.edited.update(edit.reason for edit in edits)
        if edits:
            shortened = any(edit.action == "shortened" for edit in edits)
            reason = "+".join(edit.reason for edit in edits)
            detail = "; ".join(edit.detail for edit in edits)
            action = "shortened" if shortened else "edited"
            self.touch(Touched(source.name, row.line, action, reason, detail))
        pool.add(row.with_system(self.data.system), len(pool.files) - 1, language)

    def note(self, reason: str, detail: str, place: str) -> None:
        """Count what is only reported; of places the first few."""
        counts = self.found.setdefault(reason, Counter())
        counts["rows"] += 1
        if reason == "personal_data":
            for part in detail.split(", "):
                number, _, kind = part.partition(" ")
                counts[kind] += int(number)
        places = self.places.setdefault(reason, [])
        if len(places) < SHOWN_PLACES:
            places.append(place)

    def _note(self, source: Source, split_name: str, kept: int, rows: int) -> None:
        """Put what is known of a file on the card, and say it."""
        notes = {"split": split_name, "rows": rows, "kept": kept, "dropped": rows - kept}
        notes |= source.notes | {"sha256": sha256(source.path)}
        key = source.name
        while key in self.sources:
            key += f" ({split_name})"
        self.sources[key] = notes
        self.keys[split_name, source.name] = key
        text = f"{source.name}: {rows} rows, {kept} kept"
        for kind in ("ignored_keys", "ignored_columns"):
            if ignored := source.notes.get(kind):
                text += f"; {kind.replace('_', ' ')}: {', '.join(ignored)}"
        self.say(text)

    def say_found(self) -> None:
        """Say what was only reported, with its first place."""
        for reason, counts in self.found.items():
            kinds = ", ".join(f"{n} {kind}" for kind, n in counts.items() if kind != "rows")
            text = f"{reason} in {counts['rows']} rows, nothing done about it"
            text += f" ({kinds})" if kinds else ""
            self.say(f"{text}: first at {self.places[reason][0]}; see data.clean")

    def check_dropped(self) -> None:
        """Raise DataError when more of the rows are bad than `max_dropped` allows."""
        allowed = self.data.max_dropped
        harmless = sum(self.reasons[reason] for reason in HARMLESS)
        bad = self.reasons.total() - harmless
        rows = self.rows_in - harmless
        if bad > allowed * rows:
            raise DataError(
                f"{bad} of {rows} rows cannot be used, {bad / rows:.1%}; data.max_dropped allows "
                f"{allowed:.0%}. Most frequent: {self.top_reasons()}. Mend these rows, or raise "
                "data.max_dropped"
            )

    def top_reasons(self) -> str:
        """The three most frequent reasons, each with its first row."""
        ranked = [r for r in self.reasons.most_common() if r[0] not in HARMLESS]
        ranked = ranked or self.reasons.most_common()
        shown: list[str] = []
        for reason, count in ranked[:3]:
            row = self.first[reason]
            detail = f": {row.detail}" if row.detail else ""
            shown.append(f"{reason} × {count} (first at {row.source} line {row.line}{detail})")
        return "; ".join(shown) or "it holds no rows"
