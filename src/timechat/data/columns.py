"""Which column of a table plays which role: as the user says, or from obvious names.

Turns a table's record into a conversation. Records come from `data.table`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from timechat.conversation import Conversation, Message, content_hash
from timechat.data.rows import BadRowError, writable
from timechat.data.table import Record
from timechat.errors import DataError, nearest

COLUMN_ROLES = ("system", "user", "assistant", "group", "id")
# Header names, lower-case and without spaces or underscores, that leave no doubt.
OBVIOUS_PAIRS = (
    ("user", "assistant"),
    ("question", "answer"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("input", "output"),
    ("text", "label"),
    ("text", "category"),
    ("text", "intent"),
    ("text", "sentiment"),
    ("sentence", "label"),
    ("utterance", "intent"),
    ("review", "sentiment"),
    ("review", "label"),
    ("reviewtext", "sentimentlabel"),
)
OBVIOUS_ALONE = ("system", "group", "id")


@dataclass(frozen=True, slots=True)
class Columns:
    """The header, and the position of each role's column in it."""

    header: tuple[str, ...]
    positions: dict[str, int]
    guessed: bool

    @property
    def names(self) -> dict[str, str]:
        return {role: self.header[position] for role, position in self.positions.items()}

    @property
    def ignored(self) -> list[str]:
        used = set(self.positions.values())
        return [name for i, name in enumerate(self.header) if i not in used]


def choose_columns(header: Sequence[str], wanted: Mapping[str, str], where: str) -> Columns:
    """Find the `wanted` columns (role: name), or the obvious ones when nothing is wanted.

    Raises DataError for a role or column that is not there, and when nothing is obvious.
    """
    names = tuple(name.strip() for name in header)
    if wanted:
        return Columns(names, _named(names, wanted, where), guessed=False)
    folded = [name.lower().replace(" ", "").replace("_", "") for name in names]
    fitting = [p for p in OBVIOUS_PAIRS if all(folded.count(name) == 1 for name in p)]
    if len(fitting) != 1:
        found = "more than one reading is possible" if fitting else "no names that tell the roles"
        raise DataError(
            f"{where} has the columns {_listed(names)}: {found}. Name them with "
            "`--column user=NAME --column assistant=NAME`, or `columns: {user: NAME, "
            "assistant: NAME}` in the recipe"
        )
    user, assistant = fitting[0]
    positions = {"user": folded.index(user), "assistant": folded.index(assistant)}
    positions |= {role: folded.index(role) for role in OBVIOUS_ALONE if folded.count(role) == 1}
    return Columns(names, positions, guessed=True)


def to_conversation(record: Record, columns: Columns, source: str) -> Conversation:
    """The conversation of one record. Raises BadRowError when the record has other fields."""
    if record.fault:
        raise BadRowError(record.fault, record.detail)
    if record.is_blank:
        raise BadRowError("blank_line")
    if len(record.fields) != len(columns.header):
        found, expected = len(record.fields), len(columns.header)
        raise BadRowError("ragged_row", f"{found} fields, the header has {expected}")
    cells = {
        role: writable(record.fields[position], columns.header[position])
        for role, position in columns.positions.items()
    }
    messages = (Message("user", cells["user"]), Message("assistant", cells["assistant"]))
    if cells.get("system", "").strip():
        messages = (Message("system", cells["system"]), *messages)
    return Conversation(
        id=cells.get("id", "").strip() or content_hash(messages),
        messages=messages,
        source=source,
        line=record.line,
        group=cells.get("group", "").strip(),
    )


def check_wanted(wanted: Mapping[str, str]) -> None:
    """Raise DataError unless the roles are known, with the user's and the assistant's."""
    for role in wanted:
        if role not in COLUMN_ROLES:
            raise DataError(f"columns: unknown role {role!r} ({nearest(role, COLUMN_ROLES)})")
    for role in ("user", "assistant"):
        if wanted and role not in wanted:
            raise DataError(
                f"columns name {', '.join(wanted)} but not {role}: add `--column {role}=NAME`"
            )


def _named(names: tuple[str, ...], wanted: Mapping[str, str], where: str) -> dict[str, int]:
    positions: dict[str, int] = {}
    for role, name in wanted.items():
        if names.count(name.strip()) > 1:
            raise DataError(f"{where} has {names.count(name.strip())} columns named {name!r}")
        if name.strip() not in names:
            raise DataError(
                f"{where} has no column {name!r} for {role} ({nearest(name, names)}; "
                f"its columns are {_listed(names)})"
            )
        positions[role] = names.index(name.strip())
    return positions


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:20])
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")
