"""Rows that judge answers: a better and a worse one, or one that is marked good or bad.

The chosen answer is trained on and the rejected one is kept beside it; an answer that is marked
bad is dropped with its reason, since imitating it is the last thing that was wanted.
"""

from __future__ import annotations

import re
from typing import Any, cast

from timechat.conversation import Message
from timechat.data.items import BadRowError, kind
from timechat.data.shapes.pairs import read_pair
from timechat.data.shapes.shape import Fields, Parts, Reading, Roles, Shape, folded, text_of
from timechat.data.shapes.shape import with_system as under_system
from timechat.data.shapes.turns import TURN_FIELDS, read_turns, turns_of

CHOSEN = (
    ("chosen", "rejected"),
    ("preferredoutput", "nonpreferredoutput"),
    ("preferred", "rejected"),
)
PROMPTS = ("prompt", "question", "instruction", "query", "input", *TURN_FIELDS)
UNDESIRED = "marked_bad"
# The transcripts of Anthropic's HH set and its descendants.
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


def _find_preference(fields: Fields) -> Roles | None:
    names = folded(fields)
    for better, worse in CHOSEN:
        if better in names and worse in names:
            roles = {"assistant": names[better], "rejected": names[worse]}
            asked = next((names[name] for name in PROMPTS if name in names), None)
            if asked is not None:
                roles["user"] = asked
            if "system" in names:
                roles["system"] = names["system"]
            return roles
    return None


def read_preference(fields: Fields, reading: Reading) -> Parts:
    """The prompt with the chosen answer, and the rejected one."""
    roles = reading.roles
    asked = _prompt(fields, reading)
    better = _answer(fields.get(roles["assistant"]), reading, roles["assistant"])
    worse = _answer(fields.get(roles["rejected"]), reading, roles["rejected"])
    if worse[-1].role != "assistant" or not worse[-1].content.strip():
        raise BadRowError("empty_rejected", f"{roles['rejected'][:40]} holds no answer")
    if better[-1] == worse[-1]:
        raise BadRowError("same_answers", "the chosen answer is the rejected one")
    reading.met["trained on the chosen answer, the rejected one kept"] += 1
    # Some sets repeat the prompt in front of either answer.
    messages = better if len(better) > 1 and better[0].role != "assistant" else (*asked, *better)
    if messages[0].role == "system":
        return Parts(messages, worse[-1].content)
    return Parts(under_system(fields, reading, *messages), worse[-1].content)


def _prompt(fields: Fields, reading: Reading) -> tuple[Message, ...]:
    name = reading.roles.get("user")
    value: object = fields.get(name) if name else None
    if isinstance(value, dict):
        # OpenAI's shape: the input is an object with the messages in it.
        value = cast(dict[str, Any], value).get("messages")
    if value is None:
        return ()
    if isinstance(value, list):
        return turns_of(value, reading, name or "prompt")
    return (Message("user", text_of(fields, name or "")),)


def _answer(value: object, reading: Reading, name: str) -> tuple[Message, ...]:
    """An answer: text, a turn, turns, or a transcript with the prompt in front."""
    if isinstance(value, dict):
        return turns_of([value], reading, name)
    if isinstance(value, list):
        return turns_of(value, reading, name)
    if not isinstance(value, str):
        raise BadRowError("content_not_a_string", f"{name[:40]} is {kind(value)}")
    if not value.startswith(("\n\nHuman:", "Human:")):
        return (Message("assistant", value),)
    pieces = _SPEAKER.split(value)[1:]
    return tuple(
        Message("user" if speaker == "Human" else "assistant", text.strip())
        for speaker, text in zip(pieces[::2], pieces[1::2], strict=True)
    )


def _find_judged(fields: Fields) -> Roles | None:
    names = folded(fields)
    if "label" not in names or not _is_verdict(fields[names["label"]]):
        return None
    for turns in TURN_FIELDS:
        if turns in names and isinstance(fields[names[turns]], list):
            return {"messages": names[turns], "label": names["label"]}
    for user, assistant in (("prompt", "completion"), ("prompt", "response")):
        if user in names and assistant in names:
            roles = {"user": names[user], "assistant": names[assistant]}
            return roles | {"label": names["label"]}
    return None


def _is_verdict(value: object) -> bool:
    return isinstance(value, bool) or value in (0, 1, "true", "false", "True", "False", "0", "1")


def read_judged(fields: Fields, reading: Reading) -> Parts:
    """An answer that was marked good. Raises BadRowError for one that was marked bad."""
    label = fields.get(reading.roles["label"])
    if not _is_verdict(label):
        raise BadRowError("bad_label", f"label is {kind(label)}; true or false")
    if label in (False, 0, "false", "False", "0"):
        raise BadRowError(UNDESIRED, "label is false: the answer is one to avoid")
    reading.met["trained on the answers that are marked good"] += 1
    read = read_turns if "messages" in reading.roles else read_pair
    return read(fields, reading)


PREFERENCE_SHAPE = Shape(
    "preference",
    "prompt, chosen and rejected",
    _find_preference,
    read_preference,
    ("prompt", "chosen", "rejected", "preferred_output", "non_preferred_output"),
)
KTO_SHAPE = Shape(
    "kto",
    "prompt and completion, or messages, with a label that is true or false",
    _find_judged,
    read_judged,
    ("prompt", "completion", "messages", "label"),
)
