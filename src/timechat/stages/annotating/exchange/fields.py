"""What the shapes share: finding prompt and answers among named fields, messages, times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

from timechat.conversation import Message, as_role
from timechat.ledger.judging import Answer, Item, Judgement

PROMPT_NAMES = ("messages", "prompt", "question", "instruction", "text", "input", "chat")
ANSWER_NAMES = ("answer", "response", "completion", "output", "label")
PAIR_NAMES = (("answer_1", "answer_2"), ("text1", "text2"), ("response_1", "response_2"))
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}


def find_fields(
    data: Mapping[str, Any], columns: Mapping[str, str]
) -> tuple[tuple[Message, ...], tuple[Answer, ...]]:
    """The prompt and the answers among a task's named fields. Raises ValueError without prompt."""
    prompt_name = columns.get("user") or _first(PROMPT_NAMES, data)
    if prompt_name is None or prompt_name not in data:
        raise ValueError(f"no prompt among {', '.join(data)}: name it with --column user=NAME")
    pair = next((p for p in PAIR_NAMES if all(name in data for name in p)), None)
    answer_name = columns.get("assistant") or _first(ANSWER_NAMES, data)
    is_answer = answer_name in data and answer_name != prompt_name
    names = pair or ((str(answer_name),) if is_answer else ())
    answers = tuple(Answer(str(data[name]), name) for name in names if data[name])
    if pair and data.get("swapped"):
        answers = answers[::-1]
    return to_messages(data[prompt_name], "user"), answers


def to_messages(value: Any, role: str) -> tuple[Message, ...]:
    """Messages from a text, one message or a list of them, in OpenAI's or ShareGPT's words."""
    if isinstance(value, str):
        value = [{"role": role, "content": value}]
    turns = cast(list[dict[str, Any]], [value] if isinstance(value, dict) else value)
    found: list[Message] = []
    for turn in turns:
        name = turn.get("role") or turn.get("from")
        known = as_role(SHAREGPT_ROLES.get(str(name), name))
        content = turn.get("content", turn.get("value"))
        if known is None or not isinstance(content, str):
            raise ValueError(f"a message with role {name!r} and {type(content).__name__} content")
        found.append(Message(known, content))
    if not found:
        raise ValueError("an empty prompt")
    return tuple(found)


def name_answers(item: Item) -> dict[str, str]:
    """The answers under the names that `find_fields` finds, two of them in a fair order."""
    texts = [item.answers[index].text for index in item.shown_order("")]
    names = ("answer_1", "answer_2") if item.task == "choose" else ("answer",)
    return dict(zip(names, texts, strict=False))


def is_swapped(item: Item) -> bool:
    """Whether `name_answers` shows the second answer first."""
    return item.task == "choose" and item.shown_order("") == (1, 0)


def said_of(item: Item, annotator: str, value: str, **more: Any) -> Judgement:
    """The judgement behind a bare value: the answer itself was right, anything else corrects it."""
    is_answer = bool(item.answers) and value == item.answers[0].text
    verdict = "right" if is_answer else "corrected"
    return Judgement(0, annotator, verdict, None if is_answer else value, **more)


def write_prompt(prompt: Sequence[Message]) -> str:
    """The messages as one text; a lone question as it is."""
    if len(prompt) == 1:
        return prompt[0].content
    return "\n".join(f"{m.role}: {m.content}" for m in prompt)


def write_time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")


def read_time(text: object) -> int:
    """Milliseconds since 1970 of an ISO time; 0 for none."""
    if not text:
        return 0
    when = datetime.fromisoformat(str(text))
    return round((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)


def _first(names: Sequence[str], data: Mapping[str, Any]) -> str | None:
    return next((name for name in names if name in data), None)
