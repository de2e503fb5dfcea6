"""Tool calls in an answer's text, parsed back while it comes, where the template's form is known.

Hermes and Qwen write `<tool_call>{…}</tool_call>` among other words; Llama 3 and Mistral answer
with JSON and nothing else. What looks like a call and is none comes out as the text it was. Tools
on their way in are the template's (`model.render`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, cast

from timechat.engine.text import overlap

Form = Literal["", "tagged", "bare"]
OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class Call:
    """A function that the model wants called; `arguments` is a JSON object as text."""

    name: str
    arguments: str


def form_of(template: str) -> Form:
    """How a model with this chat template writes its calls; empty where that is not known."""
    if OPEN in template:
        return "tagged"
    # Both mark a call with a special token, which no text shows; what follows is JSON.
    if "[TOOL_CALLS]" in template or ("tools" in template and '"parameters"' in template):
        return "bare"
    return ""


class CallReader:
    """One answer's text and the calls in it. `feed` and `end` return what may be shown, and calls
    that came to their end."""

    def __init__(self, form: Form) -> None:
        self.found = 0
        self._form = form
        self._held = ""
        self._is_open = False  # within a call, or an answer that may be one

    def feed(self, text: str) -> tuple[str, list[Call]]:
        if not self._form:
            return text, []
        self._held += text
        if self._form == "bare":
            return self._feed_bare(), []
        return self._feed_tagged()

    def end(self) -> tuple[str, list[Call]]:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        if not self._is_open:
            return self._worded(held), []
        body = held.removeprefix(OPEN) if self._form == "tagged" else held
        calls = read_calls(body)
        self.found += len(calls)
        return ("", calls) if calls else (held, [])

    def _feed_bare(self) -> str:
        """An answer whose first word is JSON waits for its end; any other is only text."""
        start = self._held.lstrip()
        if not start:
            return ""
        if start[0] in "{[":
            self._is_open = True
            return ""
        self._form = ""
        shown, self._held = self._held, ""
        return shown

    def _feed_tagged(self) -> tuple[str, list[Call]]:
        shown, calls = "", list[Call]()
        while True:
            if not self._is_open:
                before, tag, _ = self._held.partition(OPEN)
                if not tag:
                    keep = overlap(self._held, OPEN)
                    shown += self._worded(self._held[: len(self._held) - keep])
                    self._held = self._held[len(self._held) - keep :]
                    return shown, calls
                shown += self._worded(before)
                self._held = self._held[len(before) :]
                self._is_open = True
            body, tag, rest = self._held.partition(CLOSE)
            if not tag:
                return shown, calls
            new = read_calls(body.removeprefix(OPEN))
            self.found += len(new)
            calls += new
            shown += "" if new else body + tag
            self._held, self._is_open = rest, False

    def _worded(self, text: str) -> str:
        """`text`, unless it is only the space between two calls."""
        return "" if self.found and not text.strip() else text


def read_calls(text: str) -> list[Call]:
    """The calls that `text` is as JSON, one or a list; none where it is anything else."""
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        return []
    each = cast(list[object], found) if isinstance(found, list) else [found]
    calls = [_call(one) for one in each]
    return [call for call in calls if call is not None] if all(calls) else []


def _call(found: object) -> Call | None:
    if not isinstance(found, dict):
        return None
    row = cast(dict[str, Any], found)
    name = row.get("name")
    arguments = row.get("arguments", row.get("parameters", {}))
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return Call(name, json.dumps(arguments, ensure_ascii=False))
