"""What can be seen of an export without running it: template, stop tokens, ids, every tensor.

Each function raises ExportError naming what is not as it was evaluated. How the model then answers
is `gate`'s question.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import jinja2
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors import safe_open
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from timechat.conversation import Message
from timechat.errors import ExportError, ModelError
from timechat.export.ggufile import Slot, file_value, plan_slots
from timechat.export.readback import Contents
from timechat.export.spelling import Speller
from timechat.export.vocabulary import Vocabulary
from timechat.export.weights import Weights
from timechat.model.render import Renderer

Progress = Callable[[int], None]

# What trips tokenizers up: runs of spaces, digits, contractions, scripts, code, controls as text.
AWKWARD = (
    "It's 12,345.67 now; they'll say we've  two   spaces.",
    "\tdef f(x):\n\t\treturn {'a': x**2}  # 100%\n\n\n",
    "Crème brûlée costs €4; 東京タワー, Привет мир, مرحبا 🙂👍🏽",
    " leading and trailing ",
    "What does <s>[INST] or </s> or <|im_end|> or <|endoftext|> do in a text?",
)
# Conversations that every chat format must bear: several turns, with and without a system turn.
_TURNS = (
    Message("user", "Who are you?"),
    Message("assistant", "A librarian."),
    Message("user", "Where do you work?"),
)
_SYSTEM = Message("system", "You answer briefly.")
# Largest error of a stored value, in parts of its block's largest: half a step of the type's grid.
# Q4_0 and Q5_0 have one step less on one side, where a whole step may be lost.
_BLOCK_ERROR = {
    Kind.Q8_0: 0.5 / 127, Kind.Q5_1: 0.5 / 15.5, Kind.Q5_0: 1.0 / 16, Kind.Q4_1: 0.5 / 7.5,
    Kind.Q4_0: 1.0 / 8,
}  # fmt: skip
# Scales are stored in f16, and values rounded in it.
_F16, _BF16 = 2.0**-10, 2.0**-8


def check_template(template: str, renderer: Renderer) -> None:
    if template != renderer.tokenizer.chat_template:
        raise _refusal("template", "the chat template is not the one that was evaluated")


def check_stops(stops: Sequence[int], renderer: Renderer) -> None:
    """Both tokens at which an answer ended when it was evaluated must end it there too."""
    missing = renderer.stop_ids - set(stops)
    if missing:
        names = renderer.tokenizer.convert_ids_to_tokens(sorted(missing))
        raise _refusal("stop tokens", f"{names} ended answers when evaluated and would not now")


def check_settings_of_folder(folder: Path, renderer: Renderer) -> None:
    """Template and stop tokens of a merged folder, from its files."""
    for name in ("generation_config.json", "config.json"):
        ids = json.loads((folder / name).read_text("utf-8")).get("eos_token_id")
        check_stops(ids if isinstance(ids, list) else [ids], renderer)
    path = folder / "chat_template.jinja"
    if not path.is_file():
        raise _refusal("template", "the folder holds no chat_template.jinja")
    check_template(path.read_text("utf-8"), renderer)


def check_folder_ids(
    found: PreTrainedTokenizerBase, renderer: Renderer, questions: Sequence[Sequence[Message]]
) -> None:
    """The folder's own tokenizer has the evaluated template, and gives the evaluated ids for whole
    conversations and for text."""
    check_template(str(cast(Any, found).chat_template), renderer)
    other = Renderer(found)
    for messages in _bearable(renderer, questions):
        if other.prompt(messages) != renderer.prompt(messages):
            raise _refusal("tokenizer", f"other ids for {_shown(messages[-1].content)}")
    for text in _texts(questions):
        if _plain(found, text) != _plain(renderer.tokenizer, text):
            raise _refusal("tokenizer", f"other ids for {_shown(text)}")


def check_vocabulary(
    vocabulary: Vocabulary, renderer: Renderer, questions: Sequence[Sequence[Message]]
) -> None:
    """Template, stop tokens, and the ids that llama.cpp will work out from the file."""
    check_template(vocabulary.template, renderer)
    ids = dict(vocabulary.special_ids)
    check_stops([ids[name] for name in ("eos", "eot") if name in ids], renderer)
    speller = Speller(vocabulary)
    for messages in _bearable(renderer, questions):
        rows = [{"role": m.role, "content": m.content} for m in messages]
        text = renderer.tokenizer.apply_chat_template(
            rows, tokenize=False, add_generation_prompt=True
        )
        if speller.encode(str(text), special=True) != renderer.prompt(messages):
            raise _refusal("tokenizer", f"other ids for {_shown(messages[-1].content)}")
    for text in _texts(questions):
        if speller.encode(text, special=False) != _plain(renderer.tokenizer, text):
            raise _refusal("tokenizer", f"other ids for {_shown(text)}")


def check_merged_tensors(
    weights: Weights, folder: Path, progress: Progress = lambda _: None
) -> None:
    """Every tensor of the folder is, bit for bit, the base's with the adapter folded in."""
    left = set(weights.entries)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 (no mapping, whatever it looks like)
                if name not in left:
                    raise _refusal("weights", f"{name} is not of the model")
                left.discard(name)
                if not _same_bits(shard.get_tensor(name), weights.rounded(name)):
                    raise _refusal("weights", f"{name} is not what was evaluated")
                progress(1)
    if left:
        raise _refusal("weights", f"{min(left)} is missing")


def check_gguf_tensors(
    contents: Contents,
    weights: Weights,
    config: PretrainedConfig,
    quantisation: str,
    progress: Progress = lambda _: None,
) -> None:
    """Every value of the file is within its type's rounding of the evaluated one."""
    for slot in plan_slots(weights, config, quantisation):
        found, wanted = contents.tensor(slot.name), file_value(slot, weights, config)
        if found.shape != wanted.shape:
            raise _refusal("weights", f"{slot.name} has the shape {tuple(found.shape)}")
        if not bool(((found - wanted).abs() <= _allowed(slot, wanted)).all()):
            raise _refusal("weights", f"{slot.name} is not what was evaluated")
        progress(1)


def _allowed(slot: Slot, wanted: Tensor) -> Tensor:
    """The largest rounding error of each value, for its type; twice the half steps of floats."""
    size = wanted.abs()
    if slot.kind == Kind.F32:
        return torch.zeros_like(size)
    if slot.kind in (Kind.F16, Kind.BF16):
        share = _F16 if slot.kind == Kind.F16 else _BF16
        return size * share + 2.0**-24
    blocks = wanted.unflatten(-1, (-1, 32))
    span = blocks.abs().amax(-1, keepdim=True)
    if slot.kind in (Kind.Q4_1, Kind.Q5_1):
        span = (
            blocks.amax(-1, keepdim=True) - blocks.amin(-1, keepdim=True)
        ) / 2 + span * _F16 * 16
    worst = span * (_BLOCK_ERROR[slot.kind] * (1 + 2 * _F16) + _F16) + 2.0**-24
    return worst.expand(blocks.shape).flatten(-2)


def _same_bits(one: Tensor, two: Tensor) -> bool:
    return one.dtype == two.dtype and one.shape == two.shape and torch.equal(one, two)


def _bearable(
    renderer: Renderer, questions: Sequence[Sequence[Message]]
) -> Iterator[Sequence[Message]]:
    """The run's questions and two made conversations, where the template takes system turns."""
    yield from (q for q in questions if not _holds_special(renderer, q))
    yield _TURNS
    try:
        renderer.prompt((_SYSTEM, *_TURNS))
    except (jinja2.TemplateError, ModelError):
        return
    yield (_SYSTEM, *_TURNS)


def _holds_special(renderer: Renderer, messages: Sequence[Message]) -> bool:
    """Whether a message holds the text of a special token, which our renderer takes as text and a
    reader of the rendered whole cannot tell from the template's own."""
    names = [str(t) for t in cast(Any, renderer.tokenizer).get_added_vocab()]
    return any(name in message.content for message in messages for name in names)


def _texts(questions: Sequence[Sequence[Message]]) -> list[str]:
    return [*AWKWARD, *(message.content for q in questions for message in q)]


def _plain(tokenizer: Any, text: str) -> list[int]:
    found = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return list(found)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _refusal(name: str, why: str) -> ExportError:
    return ExportError(
        f"not exported: the gate refused it ({name}): {why}. Nothing was left behind."
    )
