"""Argilla 2's records: `fields`, `responses` by people, `suggestions` by models.

The shape is what `rg.Record.to_dict` gives and `rg.Record.from_dict` reads (argilla 2, records).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from timechat.ledger.annotation import Queue
from timechat.ledger.judging import VERDICTS, Item, Judgement, Suggestion
from timechat.stages.annotating.exchange.fields import (
    find_fields,
    is_swapped,
    name_answers,
    read_time,
    said_of,
    write_time,
)


def read_record(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> Item:
    """One record with what models suggested and people answered. Raises ValueError, KeyError."""
    metadata: Mapping[str, Any] = row.get("metadata") or {}
    prompt, answers = find_fields({**row["fields"], **_swap(metadata)}, columns)
    suggestions: Mapping[str, Any] = row.get("suggestions") or {}
    item = Item(
        "choose" if len(answers) == 2 else "judge",
        prompt,
        answers,
        str(metadata.get("id", row.get("id", ""))),
        str(metadata.get("group") or ""),
        where,
        suggestions=tuple(
            Suggestion(str(found.get("agent") or "model"), found["value"])
            for found in suggestions.values()
            if isinstance(found["value"], str) and found["value"]
        ),
    )
    by_user: dict[str, dict[str, Any]] = {}
    for question, responses in (row.get("responses") or {}).items():
        for response in responses:
            by_user.setdefault(str(response["user_id"]), {})[question] = response["value"]
    return replace(item, said=tuple(_judgement(item, *one) for one in by_user.items()))


def write_records(queue: Queue) -> list[dict[str, Any]]:
    """The queue as records that Argilla's `from_dict` and `read_record` read."""
    said = queue.by_item()
    return [_record(item, said.get(item.id, [])) for item in queue.items()]


def _swap(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {"swapped": True} if metadata.get("swapped") else {}


def _judgement(item: Item, user: str, said: Mapping[str, Any]) -> Judgement:
    when = read_time(said.get("when"))
    if said.get("verdict") in VERDICTS[item.task]:
        ticks = said.get("ticks")
        return Judgement(
            0,
            user,
            said["verdict"],
            said.get("correction"),
            created_ms=when,
            ticks=None if ticks is None else tuple(map(str, ticks)),
        )
    value = next(iter(said.values()))
    if not isinstance(value, str) or item.task == "choose":
        raise ValueError(f"a response of an unknown shape: {said!r:.100}")
    return said_of(item, user, value, created_ms=when)


def _record(item: Item, said: Sequence[Judgement]) -> dict[str, Any]:
    responses: dict[str, list[dict[str, Any]]] = {}
    for judgement in said:
        given = {
            "verdict": judgement.verdict,
            "correction": judgement.value,
            "when": write_time(judgement.created_ms),
            "ticks": None if judgement.ticks is None else list(judgement.ticks),
        }
        for question, value in given.items():
            if value is not None:
                answer = {"value": value, "user_id": judgement.annotator}
                responses.setdefault(question, []).append(answer)
    metadata: dict[str, Any] = {"id": item.row_id, "group": item.group, "task": item.task}
    if is_swapped(item):
        metadata["swapped"] = 1
    # A record of Argilla holds one suggestion a question: the latest.
    suggestions: dict[str, Any] = {}
    for latest in item.suggestions[-1:]:
        content = {"value": latest.value, "score": None, "agent": latest.model}
        suggestions["correction"] = content
    return {
        "id": str(item.id),
        "fields": {"prompt": [m.to_dict() for m in item.prompt], **name_answers(item)},
        "metadata": metadata,
        "suggestions": suggestions,
        "responses": responses,
        "vectors": {},
    }
