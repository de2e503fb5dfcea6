"""Retention questions of the user's own: what a model must still know after training.

A row is `{"question": …, "answer": …, "wrong": […]}`, with `id` and `group` where it has them: one
right answer and one wrong one or more. They are asked as the shipped general questions are, always
all of them, and measured beside them, not among them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from timechat.errors import DataError, nearest
from timechat.evals.questions.suite import OWN, Choice, make_choice
from timechat.model.render import Renderer

KEYS = ("question", "answer", "wrong", "id", "group")
EXAMPLE = '{"question": "…", "answer": "…", "wrong": ["…"]}'


def own_choices(files: Sequence[Path], renderer: Renderer) -> tuple[Choice, ...]:
    """The questions of the user's files. Raises DataError naming the line that is none."""
    rows = [row for file in files for row in _read(file)]
    seen: dict[str, str] = {}
    for row in rows:
        if row["id"] in seen:
            raise DataError(f"{row['place']}: the id {row['id']!r} is also at {seen[row['id']]}")
        seen[row["id"]] = row["place"]
    return tuple(make_choice(row, renderer) for row in rows)


def _read(file: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{file} is not UTF-8 text") from None
    except OSError as error:
        raise DataError(f"evaluate.retention: {file} cannot be read: {error.strerror}") from None
    rows = [_row(line, file, number) for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise DataError(f"evaluate.retention: {file} holds no question; a row is {EXAMPLE}")
    yield from rows


def _row(line: str, file: Path, number: int) -> dict[str, Any]:
    place = f"{file}:{number}"
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is not JSON ({error}); a row is {EXAMPLE}") from None
    if not isinstance(found, dict):
        raise DataError(f"{place} is no object; a row is {EXAMPLE}")
    row = cast(dict[str, Any], found)
    for key in row:
        if key not in KEYS:
            raise DataError(f"{place}: unknown key {key!r} ({nearest(key, KEYS)})")
    wrong = row.get("wrong")
    texts = [row.get("question"), row.get("answer")]
    texts += cast(list[Any], wrong) if isinstance(wrong, list) and wrong else [None]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(f"{place} needs a question, an answer and wrong answers: {EXAMPLE}")
    if len(set(texts[1:])) < len(texts[1:]):
        raise DataError(f"{place}: two of the answers are the same")
    name = f"own:{row.get('id', f'{file.name}:{number}')}"
    group = f"own:{row['group']}" if row.get("group") else name
    return {**row, "id": name, "group": group, "tags": [OWN], "place": place}
