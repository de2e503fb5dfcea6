"""What a file was recognised as, in lines for a person: before anything is done with its rows."""

from __future__ import annotations

from collections.abc import Iterator

from timechat.conversation import Conversation
from timechat.data.sources import SHOWN_ROWS, Source

SHOWN_CHARACTERS = 160
SHOWN_TURNS = 6
DELIMITER_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}


def describe(source: Source) -> Iterator[str]:
    """How `source` is read and by whose word, then its first rows turn by turn."""
    notes = source.notes
    what = str(notes["format"])
    if delimiter := notes.get("delimiter"):
        what += f" ({DELIMITER_NAMES.get(delimiter, repr(delimiter))})"
    if encoding := notes.get("encoding"):
        what += f" in {encoding} ({notes['encoding_from']})"
    text = f"{source.name}: {what}, shape {notes['shape']}"
    if columns := notes.get("columns"):
        text += "; " + ", ".join(f"{role} = {name}" for role, name in columns.items())
        text += f" (from {notes['columns_from']})"
    if source.split:
        text += f"; its name says {source.split}"
    yield text
    if unread := notes.get("unread_files"):
        yield f"  not read: {', '.join(unread)}"
    shown = source.first()[:SHOWN_ROWS]
    for row in shown:
        yield from _shown(row)
    if not shown and (fault := source.first_fault()):
        yield f"  none of the first rows can be read; line {fault[0]}: {fault[1]}"


def _shown(row: Conversation) -> Iterator[str]:
    yield f"  line {row.line}"
    if row.is_text:
        yield f"    text: {_short(row.messages[0].content)}"
        return
    for message in row.messages[:SHOWN_TURNS]:
        mark = "" if message.weight or message.role != "assistant" else " (not learned)"
        yield f"    {message.role}{mark}: {_short(message.content)}"
    if len(row.messages) > SHOWN_TURNS:
        yield f"    … {len(row.messages) - SHOWN_TURNS} more turns"
    if row.rejected:
        yield f"    rejected: {_short(row.rejected)}"


def _short(text: str) -> str:
    plain = " ".join(text.split())
    if len(plain) <= SHOWN_CHARACTERS:
        return plain
    return plain[: SHOWN_CHARACTERS - 1] + "…"
