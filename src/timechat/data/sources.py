"""Files to conversations, streaming, each row with the physical line it begins at.

A row that cannot be read is a `Drop` with its reason, never an exception; a file that cannot be
read is a DataError before the first row. What is asked of a readable row is `data.clean`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from timechat.conversation import Conversation, Message
from timechat.data.cleaning.steps import cleaning_steps
from timechat.data.files.containers import Container, open_containers
from timechat.data.files.locate import Split, locate
from timechat.data.files.prose import BLOCK, split_text
from timechat.data.items import BadRowError, Item
from timechat.data.rows import to_conversation
from timechat.data.shapes.pairs import TEXT_SHAPE
from timechat.data.shapes.registry import Recognised, check_wanted, recognise
from timechat.data.shapes.shape import Reading
from timechat.data.shapes.turns import CHAT
from timechat.data.verdicts import Drop, clean
from timechat.errors import DataError
from timechat.recipe import Clean, Data

SHOWN_ROWS = 3
# Questions are asked as they stand: only what cannot be asked at all is refused.
AS_THEY_STAND = Clean(
    repeated_turns="off", residue="off", damage="off", personal="off", language="off"
)
# A file whose first rows are all broken is read as our own shape, so that each says its reason.
PLAIN = Recognised(CHAT, {"messages": "messages"}, "nothing else")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file: a conversation, or why it is none."""

    line: int
    found: Conversation | Drop


@dataclass(slots=True)
class Source:
    """One checked list of rows. `name` is its file's path as the user gave it.

    `notes` say how it is read; what is only known at the end is there once `rows` is exhausted.
    """

    name: str
    path: Path
    container: Container
    recognised: Recognised
    data: Data
    split: Split | None = None
    notes: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def shape(self) -> str:
        return self.recognised.shape.name

    def rows(self) -> Iterator[Row]:
        """Every row of the file in order: lines of JSONL, records of a table, passages of text."""
        reading = Reading(
            self.recognised.roles, system=self.data.system, tool_calls=self.data.tool_calls
        )
        passages = 0
        for item in self.container.read():
            for found in self._read(item, reading, passages):
                passages += 1
                yield Row(item.line, found)
        if reading.ignored:
            key = "ignored_columns" if self.container.is_table else "ignored_keys"
            self.notes[key] = sorted(reading.ignored)
        self.notes |= dict(sorted(reading.met.items()))

    def first(self) -> list[Conversation]:
        """The first few rows that can be read, to be looked at."""
        shown: list[Conversation] = []
        reading = Reading(dict(self.recognised.roles), self.data.system, self.data.tool_calls)
        for item in self.container.sample():
            found = [f for f in self._read(item, reading, 0) if isinstance(f, Conversation)]
            shown += found
            if len(shown) >= SHOWN_ROWS:
                break
        return shown[:SHOWN_ROWS]

    def first_fault(self) -> tuple[int, str] | None:
        """The line and the reason of the first row that cannot be read."""
        for row in self.rows():
            if isinstance(row.found, Drop) and row.found.reason != "blank_line":
                return row.line, f"{row.found.reason} ({row.found.detail})"
        return None

    def _read(self, item: Item, reading: Reading, number: int) -> Iterator[Conversation | Drop]:
        try:
            row = to_conversation(
                item, self.recognised.shape, reading, self.name, self.container.is_table
            )
        except BadRowError as error:
            yield error.drop
            return
        if self.shape != "text":
            yield row
        elif self.container.kind == "text":
            # A file of text says nothing of what belongs together but its order.
            yield replace(row, group=f"{self.name}#{number // BLOCK}")
        else:
            yield from self._passages(row)

    def _passages(self, row: Conversation) -> Iterator[Conversation | Drop]:
        """The passages of one record's text, which stay together."""
        pieces = split_text(row.messages[0].content, self.data.passage_characters)
        if not pieces:
            yield Drop("empty_text")
        group = row.group or f"{self.name}:{row.line}"
        for number, piece in enumerate(pieces, 1):
            name = row.id if len(pieces) == 1 else f"{row.id}-{number}"
            messages = (Message("assistant", piece),)
            yield replace(row, id=name, messages=messages, group=group)


def open_sources(names: Iterable[str], data: Data) -> list[Source]:
    """The lists of rows behind `names`, each checked and its shape recognised.

    A folder, an archive and a Hub id stand for the data files in them. Raises DataError.
    """
    check_wanted(data.columns)
    sources: list[Source] = []
    for name in names:
        found = locate(name)
        opened: list[Source] = []
        for blob in found.blobs:
            split = found.split.get(blob.name)
            for number, container in enumerate(open_containers(blob, data)):
                try:
                    opened.append(_open(blob.name, blob.path, container, data, split))
                except DataError as error:
                    # Of a workbook's sheets the first must be read; later ones may be notes.
                    if not (number and container.part):
                        raise
                    found.unread.append(f"{blob.name} sheet {container.part!r} ({error})"[:200])
        if found.unread and opened:
            opened[0].notes["unread_files"] = found.unread[:20]
        sources += opened
    return sources


def _open(name: str, path: Path, container: Container, data: Data, split: Split | None) -> Source:
    where = f"{name}/{container.part}" if container.part else name
    notes: dict[str, Any] = {"format": container.kind} | container.notes
    if container.kind == "text":
        recognised = Recognised(TEXT_SHAPE, {"text": "text"}, "the kind of file")
        return Source(where, path, container, recognised, data, split, notes | {"shape": "text"})
    fields = [item.fields for item in container.sample() if item.fields is not None]
    names = container.names or tuple(dict.fromkeys(name for row in fields for name in row))
    if fields or container.names:
        # A table without rows still has its header.
        recognised = recognise(
            fields or [dict.fromkeys(names, "")], names, data.columns, data.shape, where
        )
    else:
        recognised = PLAIN
    notes |= {
        "shape": recognised.shape.name,
        "columns": recognised.roles,
        "columns_from": recognised.by,
    }
    return Source(where, path, container, recognised, data, split, notes)


def read_questions(path: Path) -> list[Conversation]:
    """Every row of a file of questions. Raises DataError when one of them is unusable.

    Nobody would see a ledger of drops here, so there are none: a bad row is an error.
    """
    questions: list[Conversation] = []
    steps = cleaning_steps(AS_THEY_STAND)
    for source in open_sources([str(path)], Data()):
        for row in source.rows():
            verdict = row.found
            if not isinstance(verdict, Drop):
                verdict = clean(verdict, steps)
            if not isinstance(verdict, Drop):
                questions.append(verdict[0])
            elif verdict.reason != "blank_line":
                detail = f" ({verdict.detail})" if verdict.detail else ""
                raise DataError(
                    f"{source.name} line {row.line}: {verdict.reason}{detail}; "
                    "mend or remove this row"
                )
    if not questions:
        raise DataError(f"{path} holds no questions: give conversation rows")
    return questions
