"""Label Studio's tasks: `data`, `annotations` by people, `predictions` by models.

The shapes are those of its documentation ("Label Studio Task Format", "Pairwise"). What its
interface shows is `write_config`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from xml.sax.saxutils import quoteattr

from timechat.ledger.annotation import Queue
from timechat.ledger.judging import TICKS, Item, Judgement, Suggestion
from timechat.stages.annotating.exchange.fields import (
    find_fields,
    is_swapped,
    name_answers,
    read_time,
    said_of,
    write_prompt,
    write_time,
)


def read_task(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> Item:
    """One task with what models predicted and people said. Raises ValueError and KeyError."""
    data = row["data"]
    prompt, answers = find_fields(data, columns)
    predictions = [
        Suggestion(str(found.get("model_version") or "model"), value)
        for found in row.get("predictions") or ()
        if (value := _value(found["result"])[1])
    ]
    item = Item(
        "choose" if len(answers) == 2 else "judge",
        prompt,
        answers,
        str(data.get("id", row.get("id", ""))),
        str(data.get("group") or ""),
        where,
        suggestions=tuple(predictions),
    )
    swapped = bool(data.get("swapped"))
    said = [_judgement(item, found, swapped) for found in row.get("annotations") or ()]
    return replace(item, said=tuple(said))


def write_tasks(queue: Queue) -> list[dict[str, Any]]:
    """The queue as tasks that Label Studio imports and `read_task` reads back."""
    said = queue.by_item()
    return [_task(item, said.get(item.id, []), bool(queue.labels)) for item in queue.items()]


def write_config(queue: Queue) -> str:
    """The labelling interface under which Label Studio shows what `write_tasks` wrote."""
    if {item.task for item in queue.items()} == {"choose"}:
        return (
            '<View>\n  <Text name="prompt" value="$prompt"/>\n'
            '  <Pairwise name="choice" toName="answer_1,answer_2"/>\n'
            '  <Text name="answer_1" value="$answer_1"/>\n'
            '  <Text name="answer_2" value="$answer_2"/>\n'
            f"{_choices('ticks', TICKS, several=True)}</View>\n"
        )
    correction = '  <TextArea name="correction" toName="prompt"/>\n'
    if queue.labels:
        controls = _choices("label", queue.labels) + _choices("verdict", ("wrong",))
    else:
        controls = _choices("verdict", ("right", "wrong")) + correction
    return (
        '<View>\n  <Text name="prompt" value="$prompt"/>\n  <Text name="answer" value="$answer"/>\n'
        f"{controls}</View>\n"
    )


def _choices(name: str, values: Sequence[str], *, several: bool = False) -> str:
    inner = "".join(f"    <Choice value={quoteattr(value)}/>\n" for value in values)
    more = ' choice="multiple"' if several else ""
    return f'  <Choices name="{name}" toName="prompt"{more}>\n{inner}  </Choices>\n'


def _judgement(item: Item, found: Mapping[str, Any], swapped: bool) -> Judgement:
    by = found.get("completed_by")
    name = str(by.get("email") or by.get("id")) if isinstance(by, dict) else f"user {by}"
    when = read_time(found.get("created_at"))
    more: dict[str, Any] = {"seconds": found.get("lead_time"), "created_ms": when}
    if found.get("was_cancelled"):
        return Judgement(0, name, "skip", **more)
    kind, value = _value([part for part in found["result"] if not _is_ticks(part)])
    if item.task == "choose":
        sides = ("second", "first") if swapped else ("first", "second")
        verdict = {"left": sides[0], "right": sides[1]}.get(value, "tie")
        return Judgement(0, name, verdict, **more, ticks=_ticks(found["result"]))
    if not value:
        return Judgement(0, name, "skip", **more)
    if kind == "verdict":
        return Judgement(0, name, value, **more)
    return said_of(item, name, value, **more)


def _is_ticks(part: Mapping[str, Any]) -> bool:
    return part.get("from_name") == "ticks"


def _ticks(result: Sequence[Mapping[str, Any]]) -> tuple[str, ...] | None:
    """What was ticked; None where nothing was, since who was not asked looks the same here."""
    part = next(filter(_is_ticks, result), None)
    return None if part is None else tuple(map(str, part["value"]["choices"]))


def _value(result: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The kind and the text of a result; a written correction says more than a choice beside it."""
    kinds = ("text", "choices", "verdict", "selected")
    found: dict[str, str] = {}
    for part in result:
        for name in ("text", "choices", "selected"):
            if value := part["value"].get(name):
                text = str(value if isinstance(value, str) else value[0])
                # Only our own control of that name: another's "right" may be a label.
                is_verdict = part.get("from_name") == "verdict" and text in ("right", "wrong")
                found.setdefault("verdict" if is_verdict else name, text)
    return next(((kind, found[kind]) for kind in kinds if kind in found), ("", ""))


def _task(item: Item, said: Sequence[Judgement], has_labels: bool) -> dict[str, Any]:
    data: dict[str, Any] = {"prompt": write_prompt(item.prompt), "id": item.row_id}
    data |= {"group": item.group, "messages": [m.to_dict() for m in item.prompt]}
    data |= name_answers(item)
    if item.task == "choose":
        data["swapped"] = is_swapped(item)
    return {
        "id": item.id,
        "data": data,
        "annotations": [
            {
                "id": number,
                "completed_by": {"email": judgement.annotator},
                "result": _result(item, judgement, has_labels),
                "was_cancelled": judgement.verdict == "skip",
                "created_at": write_time(judgement.created_ms),
                "lead_time": judgement.seconds,
            }
            for number, judgement in enumerate(said, 1)
        ],
        "predictions": [
            {"model_version": s.model, "result": _written(s.value, has_labels)}
            for s in item.suggestions
        ],
    }


def _result(item: Item, said: Judgement, has_labels: bool) -> list[dict[str, Any]]:
    if said.verdict == "skip":
        return []
    if item.task == "choose":
        sides = ("right", "left") if is_swapped(item) else ("left", "right")
        side = {"first": sides[0], "second": sides[1]}.get(said.verdict)
        # Label Studio's own check wants the one element by which it finds the pair.
        shape = {"from_name": "choice", "to_name": "answer_1", "type": "pairwise"}
        picked = [shape | {"value": {"selected": side}}] if side else []
        return picked + ([_choice("ticks", *said.ticks)] if said.ticks else [])
    if said.value is not None:
        return _written(said.value, has_labels)
    if has_labels and said.verdict == "right":
        return _written(item.answers[0].text, True)
    return [_choice("verdict", said.verdict)]


def _written(value: str, is_choice: bool) -> list[dict[str, Any]]:
    if is_choice:
        return [_choice("label", value)]
    shape = {"from_name": "correction", "to_name": "prompt", "type": "textarea"}
    return [shape | {"value": {"text": [value]}}]


def _choice(name: str, *values: str) -> dict[str, Any]:
    shape = {"from_name": name, "to_name": "prompt", "type": "choices"}
    return shape | {"value": {"choices": [*values]}}
