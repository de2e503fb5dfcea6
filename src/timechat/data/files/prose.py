"""Plain text and Markdown to passages, for training on text itself.

A passage is whole paragraphs, as many as fit; a heading begins a new one. Every letter of it is a
target, so nothing is cut away. A held-out passage is asked as its opening, to be continued.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from timechat.conversation import Conversation, Message
from timechat.data.files.lines import Line, Text, read_lines
from timechat.data.items import Item

# Passages that stay on one side of a split: neighbours share names and events.
BLOCK = 16
_HEADING = re.compile(r"#{1,6}\s")
_SENTENCE_END = re.compile(r"[.!?…][\"”’)]*\s")


def read_passages(source: Text | Path, size: int) -> Iterator[Item]:
    """The passages of a text file of about `size` characters, at their first line."""
    paragraphs: list[str] = []
    begin = held = 0
    for line, text in _paragraphs(read_lines(source), size):
        if isinstance(text, Item):
            yield text
            continue
        full = held + len(text) > size
        titled = held > size // 2 and _HEADING.match(text) is not None
        if paragraphs and (full or titled):
            yield Item(begin, {"text": "\n\n".join(paragraphs)})
            paragraphs, held = [], 0
        if not paragraphs:
            begin = line
        paragraphs.append(text)
        held += len(text)
    if paragraphs:
        yield Item(begin, {"text": "\n\n".join(paragraphs)})


def split_text(text: str, size: int) -> list[str]:
    """The passages of one text that is not a file."""
    lines = (Line(i, line) for i, line in enumerate(text.split("\n"), 1))
    passages: list[str] = []
    for _, paragraph in _paragraphs(lines, size):
        if isinstance(paragraph, Item):
            continue
        if passages and len(passages[-1]) + len(paragraph) <= size:
            passages[-1] += "\n\n" + paragraph
        else:
            passages.append(paragraph)
    return passages


def as_question(row: Conversation) -> Conversation:
    """A passage as its opening (not learned, not scored) and the rest."""
    text = "".join(message.content for message in row.messages)
    middle = len(text) // 2
    ends = [m.end() for m in _SENTENCE_END.finditer(text) if m.end() <= middle]
    cut = ends[-1] if ends else text.rfind(" ", 0, middle) + 1
    if cut < 1 or not text[:cut].strip() or not text[cut:].strip():
        return row
    opening = Message("assistant", text[:cut], 0.0)
    return row.with_messages((opening, Message("assistant", text[cut:])))


def _paragraphs(lines: Iterable[Line], size: int) -> Iterator[tuple[int, str | Item]]:
    """Paragraphs at their first line, none much longer than `size`; faulty lines as items."""
    held: list[str] = []
    begin = length = 0
    for line in lines:
        if line.fault:
            yield line.number, Item(line.number, None, line.fault, line.detail)
            continue
        if line.text.strip() and not (held and _HEADING.match(line.text)):
            begin = begin if held else line.number
            held.append(line.text.rstrip())
            length += len(line.text)
            if length <= size:
                continue
        elif line.text.strip():
            yield from _cut(begin, held, size)
            begin, held, length = line.number, [line.text.rstrip()], len(line.text)
            continue
        if held:
            yield from _cut(begin, held, size)
        held, length = [], 0
    if held:
        yield from _cut(begin, held, size)


def _cut(begin: int, lines: list[str], size: int) -> Iterator[tuple[int, str]]:
    """A paragraph in pieces of at most `size`, at the end of a sentence or else at a space."""
    text = "\n".join(lines)
    line = begin
    while len(text) > size:
        ends = [m.end() for m in _SENTENCE_END.finditer(text, size // 2, size)]
        at = ends[-1] if ends else text.rfind(" ", 1, size) + 1 or size
        yield line, text[:at].strip()
        line += text[:at].count("\n")
        text = text[at:]
    if text.strip():
        yield line, text.strip()
