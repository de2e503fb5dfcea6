"""Every shape there is, and which of them a file's rows have.

Told from a sample by looking, so that a damaged row among the first ones does not mislead; what
the user names overrides it, whole (`data.shape`) or field by field (`--column`).
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from timechat.data.shapes.pairs import (
    ALPACA_SHAPE,
    LABEL_SHAPE,
    PROMPT_SHAPE,
    QUESTION_SHAPE,
    TEXT_SHAPE,
    read_pair,
)
from timechat.data.shapes.preferences import KTO_SHAPE, PREFERENCE_SHAPE, read_preference
from timechat.data.shapes.shape import Fields, Roles, Shape, fold
from timechat.data.shapes.turns import CHAT, SHAREGPT
from timechat.errors import DataError, nearest

# The first that fits is taken, so the more telling ones come first.
SHAPES = (PREFERENCE_SHAPE, KTO_SHAPE, CHAT, SHAREGPT, ALPACA_SHAPE)
# Of these more than one can fit; then the user has to say.
PAIR_SHAPES = (PROMPT_SHAPE, QUESTION_SHAPE, LABEL_SHAPE)
BY_NAME = {shape.name: shape for shape in (*SHAPES, *PAIR_SHAPES, TEXT_SHAPE)}
COLUMN_ROLES = (
    "system", "user", "assistant", "group", "id", "input", "rejected", "messages", "text",
)  # fmt: skip
# A shape is believed when at least this share of the sample has it.
ENOUGH = 0.5
_NOT_NAMES = (
    "If these are no names of columns (a table without a header, a title above it), give the "
    "file a first row of names, as user,assistant; if it holds no rows, leave it out and "
    "name the other files instead of their folder"
)
_ADVICE = (
    "Name them with `--column user=NAME --column assistant=NAME`, or `columns: {user: NAME, "
    "assistant: NAME}` in the recipe; or name the shape with data.shape"
)
COLUMNS = Shape("columns", "the columns that were named", lambda _: None, read_pair)
CHOSEN_COLUMNS = Shape("columns", "the columns that were named", lambda _: None, read_preference)


@dataclass(frozen=True, slots=True)
class Recognised:
    """A shape, the field of each role, and who said so."""

    shape: Shape
    roles: Roles
    by: str


def check_wanted(wanted: Mapping[str, str]) -> None:
    """Raise DataError unless the roles are known, with the user's and the assistant's together."""
    for role in wanted:
        if role not in COLUMN_ROLES:
            raise DataError(f"columns: unknown role {role!r} ({nearest(role, COLUMN_ROLES)})")
    for role, other in (("user", "assistant"), ("assistant", "user")):
        if role in wanted and other not in wanted:
            raise DataError(
                f"columns name {', '.join(wanted)} but not {other}: add `--column {other}=NAME`"
            )


def recognise(
    sample: Sequence[Fields],
    names: Sequence[str],
    wanted: Mapping[str, str],
    shape: str,
    where: str,
) -> Recognised:
    """The shape of the rows in `sample`, whose fields are `names`.

    `wanted` maps roles to fields and `shape` names a shape or is `auto`. Raises DataError.
    """
    given = _given(names, wanted, where)
    if shape != "auto":
        chosen = BY_NAME[shape]
        roles = _roles(sample, chosen)[0] or {}
        if not roles and not ("user" in given or "messages" in given or "text" in given):
            raise DataError(
                f"{where} is not of the shape {shape!r}, which has {chosen.looks}; "
                f"it has {_listed(names)}"
            )
        return Recognised(chosen, roles | given, "the user")
    if {"user", "messages", "text"} & given.keys():
        return _by_columns(sample, given)
    found = _fitting(sample, where, names)
    by = "the user and the names" if given else "the names"
    return Recognised(found.shape, found.roles | given, by)


def _fitting(sample: Sequence[Fields], where: str, names: Sequence[str]) -> Recognised:
    for shape in SHAPES:
        roles, share = _roles(sample, shape)
        if roles is not None and share >= ENOUGH:
            return Recognised(shape, roles, "the names")
    fitting = [
        Recognised(shape, roles, "the names")
        for shape in PAIR_SHAPES
        for roles, share in [_roles(sample, shape)]
        if roles is not None and share >= ENOUGH
    ]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        readings = ", ".join(f.shape.name for f in fitting)
        raise DataError(
            f"{where} has the columns {_listed(names)}: more than one reading is possible "
            f"({readings}). {_ADVICE}"
        )
    roles, share = _roles(sample, TEXT_SHAPE)
    if roles is not None and share >= ENOUGH:
        return Recognised(TEXT_SHAPE, roles, "the names")
    raise DataError(
        f"{where} has the columns {_listed(names)}: no names that tell the roles. "
        f"{_nearest_shapes(names)} {_ADVICE}. {_NOT_NAMES}"
    )


def _by_columns(sample: Sequence[Fields], given: Roles) -> Recognised:
    if "messages" in given:
        turns = [{"messages": fields.get(given["messages"])} for fields in sample]
        is_sharegpt = (_roles(turns, SHAREGPT)[1]) >= ENOUGH
        return Recognised(SHAREGPT if is_sharegpt else CHAT, given, "the user")
    if "text" in given:
        return Recognised(TEXT_SHAPE, given, "the user")
    return Recognised(CHOSEN_COLUMNS if "rejected" in given else COLUMNS, given, "the user")


def _roles(sample: Sequence[Fields], shape: Shape) -> tuple[Roles | None, float]:
    """The roles that most rows of the sample agree on, and the share of rows that have the shape.

    A field that some rows lack (a system prompt, an input) is among the roles all the same.
    """
    found = [roles for fields in sample if (roles := shape.find(fields)) is not None]
    if not found:
        return None, 0.0
    counts: dict[str, Counter[str]] = {}
    for roles in found:
        for role, name in roles.items():
            counts.setdefault(role, Counter())[name] += 1
    common = {role: names.most_common(1)[0][0] for role, names in counts.items()}
    return common, len(found) / len(sample)


def _given(names: Sequence[str], wanted: Mapping[str, str], where: str) -> Roles:
    for role, name in wanted.items():
        count = [n.strip() for n in names].count(name.strip())
        if count > 1:
            raise DataError(f"{where} has {count} columns named {name!r}")
        if not count:
            raise DataError(
                f"{where} has no column {name!r} for {role} ({nearest(name, names[:200])}; "
                f"its columns are {_listed(names)})"
            )
    return {role: name.strip() for role, name in wanted.items()}


def _nearest_shapes(names: Sequence[str]) -> str:
    """The three shapes whose names of fields are most like these."""
    columns = [fold(name) for name in names[:50]]

    def likeness(shape: Shape) -> float:
        ratios = [
            max(
                (difflib.SequenceMatcher(None, fold(known), name).ratio() for name in columns),
                default=0.0,
            )
            for known in shape.known
        ]
        return sum(sorted(ratios)[-2:])

    every = (*PAIR_SHAPES, *SHAPES, TEXT_SHAPE)
    best = sorted(every, key=likeness, reverse=True)[:3]
    return "Nearest shapes: " + "; ".join(f"{s.name} ({s.looks})" for s in best) + "."


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:20])
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")
