"""A model that is heard though it does not fit: each matrix is fetched for its product and let go.

The shell is the family's own code without a single weight. All answers go through it together, so
that one passage over the files serves them all, and greedy answers are guessed and verified (Jacobi
decoding: every passage confirms all words up to the first wrong guess), not said word by word.

Where the weights come from is a function's knowledge: base and adapter, a merged folder, a GGUF
file, any of them with noise.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from timechat.errors import ExportError
from timechat.export.gate import Line, Probe
from timechat.export.noise import HEADS
from timechat.export.weights import Weights
from timechat.model.adapt import output_head
from timechat.model.head import Head, chunk_rows, head_of
from timechat.model.load import still

Progress = Callable[[int], None]
# A weight in fp32 by the name that the model gives it.
Fetch = Callable[[str], Tensor]
Row = tuple[tuple[int, ...], tuple[int, ...]]


class Layered:
    """`shell` with its weights fetched one module at a time. Dropped again, they leave no trace."""

    def __init__(self, shell: PreTrainedModel, fetch: Fetch) -> None:
        self.shell = shell
        self.fetch = fetch
        self._names = dict(_names(shell))
        head = output_head(shell)
        for module in cast(nn.Module, shell).modules():
            if self._names[module] and module is not head:
                module.register_forward_pre_hook(self._take)
                module.register_forward_hook(self._drop)

    @torch.inference_mode()
    def score(self, rows: Sequence[Row]) -> list[tuple[list[float], list[float], list[int]]]:
        """Of each answer's tokens: log-probabilities, leads over the next best, and the likeliest
        token at each place, as `gate` means them."""
        longest = max(len(prompt) + len(answer) for prompt, answer in rows)
        # Causal: what stands to the right of an answer's end is never seen.
        ids = torch.zeros((len(rows), longest), dtype=torch.int64)
        for row, (prompt, answer) in zip(ids, rows, strict=True):
            row[: len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
        body: Any = getattr(self.shell, self.shell.base_model_prefix)
        hidden = body(input_ids=ids, use_cache=False).last_hidden_state
        parts = [
            hidden[i, len(prompt) - 1 : len(prompt) + len(answer) - 1]
            for i, (prompt, answer) in enumerate(rows)
        ]
        targets = torch.tensor([token for _, answer in rows for token in answer])
        with self._head() as head:
            found = list(_weigh(torch.cat(parts), head, targets))
        return [
            tuple(list(value) for value in zip(*(next(pieces) for _ in answer), strict=True))  # type: ignore[misc]
            for pieces in [iter(found)]
            for _, answer in rows
        ]

    @contextmanager
    def _head(self) -> Generator[Head]:
        module = output_head(self.shell)
        assert module is not None
        self._take(module, ())
        try:
            yield head_of(self.shell)
        finally:
            self._drop(module, (), None)

    def _take(self, module: nn.Module, _: Any) -> None:
        for leaf, name in self._names[module]:
            value = nn.Parameter(self.fetch(name), requires_grad=False)
            if value.shape != getattr(module, leaf).shape:
                raise ExportError(f"{name} has the shape {tuple(value.shape)} in its file")
            setattr(module, leaf, value)

    def _drop(self, module: nn.Module, _: Any, __: Any) -> None:
        for leaf, _name in self._names[module]:
            shape = cast(Tensor, getattr(module, leaf)).to("meta")
            setattr(module, leaf, nn.Parameter(shape, requires_grad=False))


def build_shell(config: PretrainedConfig) -> PreTrainedModel:
    """The family's code with tables in place and weights nowhere (on PyTorch's meta device)."""
    with _weightless():
        shell = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    still(shell.eval())
    return shell


def hear_layered(
    layered: Layered,
    probes: Sequence[Probe],
    stops: frozenset[int],
    max_new_tokens: int = 24,
    progress: Progress = lambda _: None,
) -> list[Line]:
    """As `gate.hear`: the model's own answers, and its likelihood of the references."""
    said = _answers(layered, probes, stops, max_new_tokens, progress)
    lines: list[Line] = []
    for probe, own in zip(probes, said, strict=True):
        if probe.answer:
            lines.append(Line(probe.id, probe.prompt, probe.answer, False, (), ()))
        lines.append(Line(probe.id, probe.prompt, own, True, (), ()))
    return follow_layered(layered, lines)


def follow_layered(layered: Layered, lines: Sequence[Line]) -> list[Line]:
    """As `gate.follow`: the same tokens as another model hears them."""
    scores = layered.score([(line.prompt, line.answer) for line in lines])
    return [
        Line(line.probe, line.prompt, line.answer, line.greedy, tuple(nats), tuple(leads))
        for line, (nats, leads, _) in zip(lines, scores, strict=True)
    ]


def _answers(
    layered: Layered,
    probes: Sequence[Probe],
    stops: frozenset[int],
    most: int,
    progress: Progress,
) -> list[tuple[int, ...]]:
    """Greedy answers, stop token included. The reference is the first guess; each passage confirms
    a guess up to its first wrong word, and puts that one right."""
    filler = min(stops)
    guesses = [(*probe.answer, *[filler] * most)[:most] for probe in probes]
    done: dict[int, tuple[int, ...]] = {}
    while left := [i for i in range(len(probes)) if i not in done]:
        scores = layered.score([(probes[i].prompt, guesses[i]) for i in left])
        for i, (_, _, best) in zip(left, scores, strict=True):
            guess = guesses[i]
            right = next((n for n in range(most) if guess[n] != best[n]), most)
            end = next((n for n in range(right) if guess[n] in stops), None)
            if end is not None or right == most:
                done[i] = guess[: most if end is None else end + 1]
                progress(1)
            guesses[i] = (*guess[:right], *best[right:])
    return [done[i] for i in range(len(probes))]


def _weigh(hidden: Tensor, head: Head, targets: Tensor) -> Iterator[tuple[float, float, int]]:
    rows = chunk_rows(len(head.weight))
    for part, wanted in zip(hidden.split(rows), targets[:, None].split(rows), strict=True):
        logits = head.logits(part)
        nats = logits.log_softmax(-1).gather(1, wanted)[:, 0]
        best = logits.argmax(-1)
        leads = logits.gather(1, wanted)[:, 0]
        leads = leads - logits.scatter(1, wanted, -torch.inf).amax(-1)
        yield from zip(nats.tolist(), leads.tolist(), best.tolist(), strict=True)


def _names(shell: PreTrainedModel) -> Iterator[tuple[nn.Module, list[tuple[str, str]]]]:
    """Each module's own parameters, with the names of the weights they are: a tied one has its
    embedding's."""
    first: dict[int, str] = {}
    for name, module in cast(nn.Module, shell).named_modules():
        yield (
            module,
            [
                (leaf, first.setdefault(id(parameter), f"{name}.{leaf}".removeprefix(".")))
                for leaf, parameter in module.named_parameters(recurse=False)
            ],
        )


def sources(shell: PreTrainedModel, weights: Weights) -> dict[str, str]:
    """The model's names of its weights to the files', which may lack its prefix or call the head
    otherwise. Raises ExportError for a weight that no file holds under such a name."""
    prefix: Any = shell.base_model_prefix
    found: dict[str, str] = {}
    for own in {name for _, pairs in _names(shell) for _, name in pairs}:
        stem, _, leaf = own.rpartition(".")
        others = [f"{head}.{leaf}" for head in HEADS if stem in HEADS]
        names = [own, own.removeprefix(f"{prefix}."), *others]
        known = next((name for name in names if name in weights.entries), None)
        if known is None:
            raise ExportError(
                f"{weights.folder} holds {own} under another name, so this model can only be "
                "heard whole: free some memory, or export where there is more"
            )
        found[own] = known
    return found


@contextmanager
def _weightless() -> Generator[None]:
    """What is registered as a parameter has a shape and no memory; tables (buffers) are whole."""
    register = nn.Module.register_parameter

    def register_shape(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            param = nn.Parameter(param.to("meta"), requires_grad=False)
        register(self, name, param)

    nn.Module.register_parameter = register_shape
    try:
        yield
    finally:
        nn.Module.register_parameter = register
