"""The `Modelfile` that Ollama builds a model from, with the template in Ollama's own language.

Ollama does not run a GGUF's Jinja template, so the same text is written as a Go template. That is
possible where every turn is an opening, the content and a closing, whatever stands around it;
whether it is so is found out by rendering, and where it is not there is no Modelfile, rather than
one that makes a model babble.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jinja2

from timechat.conversation import Message
from timechat.errors import ModelError
from timechat.model.render import Renderer

_ROLES = ("system", "user", "assistant")
_MARK = "\ue0b1"


@dataclass(frozen=True, slots=True)
class Chain:
    """A chat format whose turns do not look at each other.

    `turns` are the text before and after the content by role, `opening` what a model is given to
    answer, `system` the default system prompt.
    """

    turns: Mapping[str, tuple[str, str]]
    opening: str
    system: str
    start: str = ""

    def render(self, messages: Sequence[Message], generation: bool) -> str:
        rows = list(messages)
        if self.system and rows[0].role != "system":
            rows.insert(0, Message("system", self.system))
        parts = [self.turns[m.role][0] + m.content + self.turns[m.role][1] for m in rows]
        return self.start + "".join(parts) + (self.opening if generation else "")


def read_chain(renderer: Renderer, bos: str = "") -> Chain | None:
    """The chain behind a template, or None where it is no chain. `bos` is left to the reader."""
    try:
        chain = _guess(renderer, bos)
    except (jinja2.TemplateError, ModelError, ValueError):
        return None
    # Its parser knows no way to write these between triple quotes.
    if '"""' in chain.system or chain.system.endswith('"'):
        return None
    turns = [Message("user", "one"), Message("assistant", "two"), Message("user", "three")]
    tests = [turns[:1], turns, [*turns, Message("assistant", "four"), Message("user", "five")]]
    if "system" in chain.turns:
        tests += [[Message("system", "zero"), *rows] for rows in list(tests)]
    for rows in tests:
        if bos + chain.render(rows, True) != _render(renderer, rows, True):
            return None
    return chain


def write_modelfile(
    chain: Chain, gguf_name: str, stops: Sequence[str], window: int, answer_tokens: int = -1
) -> str:
    """The Modelfile's text. Greedy and unpenalised, as the model was evaluated."""
    lines = [f"FROM ./{gguf_name}", "", f'TEMPLATE """{_go(chain)}"""', ""]
    if chain.system:
        lines += [f'SYSTEM """{chain.system}"""', ""]
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in stops]
    lines += [
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
        f"PARAMETER num_ctx {window}",
        f"PARAMETER num_predict {answer_tokens}",
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Ollama's parser takes the quotes away and unescapes nothing."""
    mark = '"""' if '"' in text or "\n" in text else '"'
    return f"{mark}{text}{mark}"


def _go(chain: Chain) -> str:
    """A branch a role inside a loop over the messages, then what opens an answer."""
    branches = [
        f"{'{{- if' if i == 0 else '{{- else if'} eq .Role {json.dumps(role)} }}}}"
        f"{_literal(before)}{{{{ .Content }}}}{_literal(after)}"
        for i, (role, (before, after)) in enumerate(chain.turns.items())
    ]
    body = "".join(branches) + "{{- end }}"
    start = _literal(chain.start)
    return f"{start}{{{{- range .Messages }}}}{body}{{{{- end }}}}{_literal(chain.opening)}"


def _literal(text: str) -> str:
    """Text that no trimming reaches: as a quoted string that the template prints."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


def _guess(renderer: Renderer, bos: str) -> Chain:
    """Openings and closings from what a template makes of marked turns."""
    marks = {role: f"{_MARK}{role}{_MARK}" for role in _ROLES}
    turns = [Message("user", marks["user"]), Message("assistant", marks["assistant"])]
    bare = _render(renderer, turns[:1], False).removeprefix(bos)
    before, _, user_after = bare.partition(marks["user"])
    whole = _render(renderer, turns, False).removeprefix(bos)
    assistant = whole.removeprefix(bare).partition(marks["assistant"])
    if not assistant[1]:
        raise ValueError("turns that depend on each other")
    twice = _render(renderer, [*turns, turns[0]], False).removeprefix(bos)
    user_before = twice.removeprefix(whole).partition(marks["user"])[0]
    found: dict[str, tuple[str, str]] = {}
    head = before.removesuffix(user_before)
    try:
        full = _render(renderer, [Message("system", marks["system"]), turns[0]], False)
        text = full.removeprefix(bos).removesuffix(user_before + marks["user"] + user_after)
        opening, _, closing = text.partition(marks["system"])
        found["system"] = (opening, closing)
    except (jinja2.TemplateError, ModelError):
        pass
    found["user"] = (user_before, user_after)
    found["assistant"] = (assistant[0], assistant[2])
    system, start = "", head
    if head and "system" in found:
        opening, closing = found["system"]
        if head.startswith(opening) and head.endswith(closing):
            system, start = head[len(opening) : len(head) - len(closing)], ""
    generation = _render(renderer, turns[:1], True).removeprefix(bos).removeprefix(bare)
    return Chain(found, generation, system, start)


def _render(renderer: Renderer, messages: Sequence[Message], generation: bool) -> str:
    rows = [{"role": m.role, "content": m.content} for m in messages]
    return str(
        renderer.tokenizer.apply_chat_template(
            rows, tokenize=False, add_generation_prompt=generation
        )
    )
