"""A file of tasks, records or preference pairs to items, recognised by its keys.

Rows with one answer, in any other shape, are `data.sources`' business.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from timechat.errors import DataError
from timechat.ledger.judging import Answer, Item
from timechat.stages.annotating.exchange.argilla import read_record
from timechat.stages.annotating.exchange.fields import to_messages
from timechat.stages.annotating.exchange.labelstudio import read_task

MAX_FILE_BYTES = 512 * 2**20


def read_items(path: Path, columns: Mapping[str, str]) -> list[Item] | None:
    """The items of a file of tasks, records or pairs; None when it is something else.

    `columns` names the fields of `user` and `assistant` where their names do not tell. Raises
    DataError when one entry cannot be read.
    """
    if path.suffix.lower() not in (".json", ".jsonl") or not path.is_file():
        return None
    if path.stat().st_size > MAX_FILE_BYTES:
        raise DataError(f"{path} is larger than {MAX_FILE_BYTES // 2**20} MiB: split it")
    rows = _entries(path)
    first = cast(dict[str, Any], rows[0]) if rows and isinstance(rows[0], dict) else {}
    read = next((read for key, read in READERS.items() if key in first), None)
    if read is None:
        return None
    items: list[Item] = []
    for number, row in enumerate(rows, 1):
        try:
            items.append(read(row, columns, path.name))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{path} entry {number} cannot be read: {what}") from None
    return items


def _entries(path: Path) -> list[Any]:
    """The entries of a JSON array or of JSON lines; empty when it is neither."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            whole: object = json.loads(text)
            return cast(list[Any], whole) if isinstance(whole, list) else []
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError):
        return []


def _read_pair(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> Item:
    """OpenAI's, TRL's and ShareGPT's shapes of two answers, of which one was preferred."""
    if "preferred_output" in row:
        prompt = row["input"]["messages"]
        sides = row["preferred_output"], row["non_preferred_output"]
    else:
        names = (columns.get("user", ""), "prompt", "conversations", "instruction")
        prompt = next(row[name] for name in names if name in row)
        sides = row["chosen"], row["rejected"]
    answers = [to_messages(side, "assistant")[-1].content for side in sides]
    return Item(
        "choose",
        to_messages(prompt, "user"),
        (Answer(answers[0], "chosen"), Answer(answers[1], "rejected")),
        str(row.get("id") or ""),
        str(row.get("group") or ""),
        where,
    )


READERS: dict[str, Callable[[Any, Mapping[str, str], str], Item]] = {
    "data": read_task,
    "fields": read_record,
    "preferred_output": _read_pair,
    "chosen": _read_pair,
}
