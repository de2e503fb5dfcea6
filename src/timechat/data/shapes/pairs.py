"""Rows of one question and one answer: Alpaca, prompt and completion, questions, labels; and text.

Told by the names of their fields, which are compared without case, spaces and underscores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from timechat.conversation import Message
from timechat.data.items import BadRowError, kind
from timechat.data.shapes.shape import Fields, Parts, Reading, Roles, Shape, folded, text_of
from timechat.data.shapes.shape import with_system as under_system
from timechat.data.shapes.turns import turns_of

ALPACA = (("instruction",), ("output", "response", "completion", "answer"), ("input", "context"))
PROMPT_COMPLETION = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "output"),
    ("prompt", "answer"),
    ("input", "output"),
    ("input", "target"),
    ("source", "target"),
    ("user", "assistant"),
    ("human", "assistant"),
    ("human", "bot"),
    ("message", "reply"),
    ("message", "response"),
)
QUESTION_ANSWER = (
    ("question", "answer"),
    ("question", "response"),
    ("questions", "answers"),
    ("query", "response"),
    ("query", "answer"),
    ("q", "a"),
)
LABELS = ("label", "category", "intent", "sentiment", "class", "topic", "target", "sentimentlabel")
LABELLED = ("text", "sentence", "utterance", "review", "reviewtext", "tweet", "content", "comment")
TEXT_LABEL = tuple((text, label) for text in LABELLED for label in LABELS)
TEXT = ("text", "content", "document", "body", "passage", "markdown")


def _finder(pairs: Sequence[tuple[str, str]]) -> Callable[[Fields], Roles | None]:
    def find(fields: Fields) -> Roles | None:
        names = folded(fields)
        fitting = [pair for pair in pairs if pair[0] in names and pair[1] in names]
        if len(fitting) != 1:
            return None
        user, assistant = fitting[0]
        return {"user": names[user], "assistant": names[assistant]} | _system(names)

    return find


def _system(names: dict[str, str]) -> Roles:
    name = names.get("system") or names.get("systemprompt")
    return {"system": name} if name else {}


def _find_alpaca(fields: Fields) -> Roles | None:
    names = folded(fields)
    roles = _system(names)
    for role, wanted in zip(("user", "assistant", "input"), ALPACA, strict=True):
        if found := next((names[name] for name in wanted if name in names), None):
            roles[role] = found
    if "history" in names:
        roles["history"] = names["history"]
    return roles if "user" in roles and "assistant" in roles else None


def _find_text(fields: Fields) -> Roles | None:
    names = folded(fields)
    fitting = [name for name in TEXT if name in names]
    return {"text": names[fitting[0]]} if len(fitting) == 1 else None


def read_pair(fields: Fields, reading: Reading) -> Parts:
    """A question, with its input where there is one, and its answer; either may list turns."""
    roles = reading.roles
    asked, answered = fields.get(roles["user"]), fields.get(roles["assistant"])
    if isinstance(asked, list) or isinstance(answered, list):
        return Parts((*_turns(asked, "user", reading), *_turns(answered, "assistant", reading)))
    question = text_of(fields, roles["user"])
    if (name := roles.get("input")) and (more := text_of(fields, name)).strip():
        question = f"{question}\n\n{more}" if question.strip() else more
    turns = (*_history(fields, reading), Message("user", question))
    answer = Message("assistant", text_of(fields, roles["assistant"]))
    return Parts(under_system(fields, reading, *turns, answer))


def read_text(fields: Fields, reading: Reading) -> Parts:
    """A text that is learned from its first letter to its last."""
    return Parts((Message("assistant", text_of(fields, reading.roles["text"])),))


def _turns(value: object, role: str, reading: Reading) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message("user" if role == "user" else "assistant", value),)
    return turns_of(value, reading, role)


def _history(fields: Fields, reading: Reading) -> tuple[Message, ...]:
    """Alpaca's earlier turns: pairs of a question and its answer."""
    name = reading.roles.get("history")
    earlier: object = fields.get(name) if name else None
    turns: list[Message] = []
    for pair in earlier if isinstance(earlier, list) else []:
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, str) for t in pair)
        ):
            raise BadRowError("bad_history", f"history holds {kind(pair)}; pairs of two strings")
        turns += [Message("user", pair[0]), Message("assistant", pair[1])]
    return tuple(turns)


def _names(pairs: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for pair in pairs for name in pair))


ALPACA_SHAPE = Shape(
    "alpaca",
    "instruction, input (may be missing) and output",
    _find_alpaca,
    read_pair,
    tuple(name for names in ALPACA for name in names),
)
PROMPT_SHAPE = Shape(
    "prompt_completion",
    "prompt and completion (or response)",
    _finder(PROMPT_COMPLETION),
    read_pair,
    _names(PROMPT_COMPLETION),
)
QUESTION_SHAPE = Shape(
    "question_answer",
    "question and answer",
    _finder(QUESTION_ANSWER),
    read_pair,
    _names(QUESTION_ANSWER),
)
LABEL_SHAPE = Shape(
    "text_label",
    "text and label (or category, intent, sentiment)",
    _finder(TEXT_LABEL),
    read_pair,
    _names(TEXT_LABEL),
)
TEXT_SHAPE = Shape("text", "a text alone: every word is learned", _find_text, read_text, TEXT)
