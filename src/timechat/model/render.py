"""The one owner of the chat format: conversations to token ids, and token ids back to an answer.

A conversation is rendered by the tokenizer's own Jinja template, cut at the borders of the
assistant's turns, and tokenised piece by piece: prompt, answer with its stop token, prompt, ...
The prompt that is served is the same pieces, so what is trained is a prefix of what is served by
construction; that the pieces equal the template's own tokens is a property the tests hold and the
`template` check counts on the user's rows.

Special tokens written inside a message are data: they are tokenised as plain text.

A text (assistant turns alone) goes under no template: its begin token where the tokenizer sets one,
its words, and its end token, so that plain documents are learned as a base model learned them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from timechat.conversation import Message, is_text
from timechat.errors import ModelError
from timechat.model.template import Template

# For families that come without a template (Llama 2 base, OpenLLaMA, Falcon, StableLM, Pythia).
# Plain words, so that it works with every vocabulary; the stop token is the model's own end, and
# a text begins as the tokenizer begins one (`_begins_with_bos`).
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### User:\n' + message['content'] + '\n\n' }}"
    "{% else %}{{ '### Assistant:\n' + message['content'] + eos_token + '\n\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)
# Marks where a message's text stands in the rendered template: private-use characters that no
# sane text holds (a text that does hold one is refused).
_OPEN, _CLOSE = "\ue0a1", "\ue0a2"


@dataclass(frozen=True, slots=True)
class Rendered:
    """Token ids with a loss weight each (0 for context)."""

    ids: list[int]
    weights: list[float]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_targets(self) -> int:
        return sum(weight > 0 for weight in self.weights)


class Renderer:
    """Renders for one tokenizer, under an optional default system prompt.

    The default system prompt becomes part of the template, so it travels with the checkpoint and
    plain transformers applies it too.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system: str = "") -> None:
        self.tokenizer = tokenizer
        if not tokenizer.chat_template:
            if not tokenizer.eos_token:
                raise ModelError("the tokenizer has neither a chat template nor an end token")
            begin = "{{ bos_token }}" if _begins_with_bos(tokenizer) else ""
            tokenizer.chat_template = begin + PLAIN_TEMPLATE
        if not isinstance(tokenizer.chat_template, str):
            raise ModelError("the tokenizer has several chat templates; keep one")
        if system:
            tokenizer.chat_template = with_default_system(tokenizer.chat_template, system)
        self._template = Template(tokenizer.chat_template, tokenizer.special_tokens_map)
        self._specials = tuple(t for t in cast(Any, tokenizer).get_added_vocab() if t)
        self._lead = self._find_lead()
        self.stop_ids = self._find_stop_ids()

    @property
    def template(self) -> str:
        """The template's own text."""
        return str(self.tokenizer.chat_template)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids that a model is given to answer the last message."""
        ids: list[int] = []
        for piece, _ in self._pieces(messages, generation=True):
            ids += self._encode(piece, first=not ids)
        return ids

    def prompt_with_tools(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
    ) -> list[int]:
        """The ids of a conversation with tools in it, in one go by the template.

        Nothing here may hold a special token as text (`holds_special`): only pieces could tell it
        from the template's own. Raises ModelError where the template refuses the conversation.
        """
        text = self._template.render(messages, True, tools)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def example(self, messages: Sequence[Message]) -> Rendered:
        """The ids of a whole conversation; assistant turns and their stop tokens carry weight."""
        ids: list[int] = []
        weights: list[float] = []
        for piece, weight in self._pieces(messages, generation=False):
            new = self._encode(piece, first=not ids)
            ids += new
            weights += [weight] * len(new)
        return Rendered(ids, weights)

    def parse(self, ids: Sequence[int]) -> str:
        """An answer's text: what stands before the first stop token."""
        end = next((i for i, token in enumerate(ids) if token in self.stop_ids), len(ids))
        return str(self.tokenizer.decode(list(ids[:end]), skip_special_tokens=True)).strip()

    def whole(self, messages: Sequence[Message], generation: bool) -> list[int]:
        """The template's own ids, tokenised in one go: the reference for the pieces."""
        text = self._render(messages, generation)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _pieces(
        self, messages: Sequence[Message], generation: bool
    ) -> list[tuple[list[tuple[str, bool]], float]]:
        """Pieces of the rendered text with their weight; each is runs of (text, is it content)."""
        if is_text(messages):
            return self._text_pieces(messages, generation)
        marked = [Message(m.role, f"{_OPEN}{i}{_CLOSE}") for i, m in enumerate(messages)]
        text = self._render(marked, generation)
        pieces: list[tuple[list[tuple[str, bool]], float]] = []
        current: list[tuple[str, bool]] = []
        rest = text
        for i, message in enumerate(messages):
            before, found, rest = rest.partition(f"{_OPEN}{i}{_CLOSE}")
            if not found:
                raise ModelError(f"the chat template drops the {message.role} turn {i + 1}")
            current.append((before, False))
            if message.role != "assistant":
                current.append((message.content, True))
                continue
            pieces.append((current, 0.0))
            stop, rest = self._split_stop(rest)
            pieces.append(([(message.content, True), (stop, False)], message.weight))
            current = []
        current.append((rest, False))
        pieces.append((current, 0.0))
        return [(runs, weight) for runs, weight in pieces if any(part for part, _ in runs)]

    def _text_pieces(
        self, messages: Sequence[Message], generation: bool
    ) -> list[tuple[list[tuple[str, bool]], float]]:
        begin = str(self.tokenizer.bos_token or "") if _begins_with_bos(self.tokenizer) else ""
        pieces = [([(m.content, True)], m.weight) for m in messages]
        end = [] if generation else [([(str(self.tokenizer.eos_token or ""), False)], 1.0)]
        every = [([(begin, False)], 0.0), *pieces, *end]
        return [(runs, weight) for runs, weight in every if runs[0][0]]

    def _split_stop(self, tail: str) -> tuple[str, str]:
        """The stop token that opens the text after an answer, and what follows it."""
        for special in sorted(self._specials, key=len, reverse=True):
            if tail.lstrip(" ").startswith(special):
                cut = tail.index(special) + len(special)
                return tail[:cut], tail[cut:]
        raise ModelError(
            "the chat template does not end an answer with a special token "
            f"(after it stands {tail[:20]!r}), so a model trained on it could never stop"
        )

    def _find_stop_ids(self) -> frozenset[int]:
        pieces = self._pieces([Message("user", "a"), Message("assistant", "b")], generation=False)
        runs = next(runs for runs, weight in pieces if weight > 0)
        stop = self._encode([runs[-1]], first=False)[-1]
        eos = cast(int | None, self.tokenizer.eos_token_id)
        return frozenset({stop} if eos is None else {stop, eos})

    def _render(self, messages: Sequence[Message], generation: bool) -> str:
        return self._template.render(
            [{"role": m.role, "content": m.content} for m in messages], generation
        )

    def _encode(self, runs: list[tuple[str, bool]], first: bool) -> list[int]:
        """Ids of a piece: in one go, unless a message holds the text of a special token."""
        if not any(content and self.holds_special(part) for part, content in runs):
            return self._tokens("".join(part for part, _ in runs), first)
        ids: list[int] = []
        for part, content in runs:
            plain = content and self.holds_special(part)
            ids += self._plain_tokens(part) if plain else self._tokens(part, first and not ids)
        return ids

    def _tokens(self, text: str, first: bool) -> list[int]:
        """Ids of `text` as they are at a text's beginning, or in its middle."""
        lead = "" if first else self._lead
        ids = self.tokenizer(lead + text, add_special_tokens=False)["input_ids"]
        return list(ids[1:] if lead else ids)

    def _plain_tokens(self, text: str) -> list[int]:
        """Ids of `text` in which special tokens are letters like all others."""
        options: dict[str, Any] = {"add_special_tokens": False, "split_special_tokens": True}
        # Behind a line break no tokenizer puts a space of its own before the text.
        begin = list(self.tokenizer("\n", **options)["input_ids"])
        ids = list(self.tokenizer("\n" + text, **options)["input_ids"])
        if self._lead and ids[: len(begin)] == begin:
            return ids[len(begin) :]
        return list(self.tokenizer(text, **options)["input_ids"])

    def _find_lead(self) -> str:
        """A special token to put before a piece of text that is not the first, where it matters.

        SentencePiece tokenizers (Llama 2) begin every text with a space of their own; behind a
        special token they do not.
        """
        for special in (self.tokenizer.eos_token, self.tokenizer.bos_token):
            if special not in self._specials:
                continue
            alone = self.tokenizer("a", add_special_tokens=False)["input_ids"]
            behind = self.tokenizer(f"{special}a", add_special_tokens=False)["input_ids"]
            return "" if list(behind[1:]) == list(alone) else str(special)
        return ""

    def holds_special(self, text: str) -> bool:
        """Whether letters in `text` spell a special token."""
        return any(special in text for special in self._specials)


def with_default_system(template: str, system: str) -> str:
    """`template` behaving as if `system` had been given wherever no system turn is."""
    literal = json.dumps(system, ensure_ascii=True)
    return (
        "{% if messages[0]['role'] != 'system' %}"
        f"{{% set messages = [{{'role': 'system', 'content': {literal}}}] + messages %}}"
        "{% endif %}" + template
    )


def _begins_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = list(tokenizer("a")["input_ids"])
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
