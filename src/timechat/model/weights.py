"""The model's own weights that learn (`full`, `layers`): which ones, and what they were.

The originals are kept in the base's dtype beside what is learned, 2 bytes a weight where training
itself takes 20. They are what the model is held to (their pointers are swapped in, nothing is
copied), what a strength between base and learned is measured from, and what is served when a run
has learned nothing worth keeping. LoRA's matrices belong to `adapt`.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from timechat.errors import ModelError
from timechat.model.adapt import output_head
from timechat.model.choose import choose_layers, layer_list, matches, number_of
from timechat.model.peft import BASE_NOTE
from timechat.model.ranks import ALONE, Ranks, is_sharded, local, whole
from timechat.recipe import Full, Layers


class Originals:
    """What the weights that learn were before."""

    def __init__(self, model: nn.Module) -> None:
        learning = [p for p in model.parameters() if p.requires_grad]
        self.kept = {p: local(p).detach().clone() for p in learning}

    @contextmanager
    def restored(self) -> Generator[None]:
        """The base model, while the block runs."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def of(self, parameter: Tensor) -> Tensor:
        """What `parameter` was: itself, where it does not learn."""
        if isinstance(parameter, nn.Parameter):
            return self.kept.get(parameter, parameter)
        return parameter

    def towards(self, into: Sequence[Tensor], learned: Sequence[Tensor], strength: float) -> None:
        """Put weights at `strength` of the way from the originals to `learned` in `into`."""
        with torch.no_grad():
            for place, old, new in zip(into, self.kept.values(), learned, strict=True):
                place.copy_(old.float().lerp(new.float(), strength))

    def _swap(self) -> None:
        for parameter, other in self.kept.items():
            rows = local(parameter).detach()
            if is_sharded(parameter):  # it is gathered from where it lies
                self.kept[parameter] = rows.clone()
                rows.copy_(other)
            else:
                self.kept[parameter], parameter.data = parameter.data, other


def release(model: PreTrainedModel, adapt: Full | Layers) -> int:
    """Let the weights that `adapt` names learn, and no other; returns their number.

    Raises ModelError when it names none, or a head that is tied to frozen embeddings.
    """
    model.requires_grad_(False)
    chosen = learning_names(model, adapt)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def learning_names(model: PreTrainedModel, adapt: Full | Layers) -> set[str]:
    """The names of the weights that learn under `adapt`."""
    named = dict(model.named_parameters())
    if isinstance(adapt, Full):
        return set(named)
    embeddings = _weights_of(model, model.get_input_embeddings())
    head = _weights_of(model, output_head(model))
    if embeddings & head and adapt.head != adapt.embeddings:
        raise ModelError(
            "this model's head is tied to its embeddings: adapt.head and adapt.embeddings must be "
            "the same"
        )
    place, layers = layer_list(model)
    chosen = choose_layers(adapt.layers, len(layers))
    names = {name for name in named if number_of(name, place) in chosen.numbers}
    for pattern in chosen.patterns:
        found = {name for name in named if matches(name, pattern)}
        if not found:
            raise ModelError(
                f"adapt.layers: no weight's name matches {pattern!r}; they look like "
                f"{next(n for n in named if number_of(n, place) == 0)}"
            )
        names |= found
    if adapt.embeddings:
        names |= embeddings
    if adapt.head:
        # The last norm stands between the layers and the head, outside of both.
        rest = [n for n in named if number_of(n, place) is None and n not in embeddings]
        names |= head | set(rest)
    return names


def save_weights(
    model: PreTrainedModel,
    folder: Path,
    base_path: str,
    base_digest: str,
    method: str,
    ranks: Ranks = ALONE,
) -> None:
    """Write the whole model as transformers does, and beside it what it was made from.

    Of several ranks each writes a file of its own, and the first what says where things are.
    """
    if ranks.count == 1:
        model.save_pretrained(folder)
    else:
        _save_part(model, folder, ranks)
    if ranks.is_first:
        about = {"path": base_path, "base_digest": base_digest, "targets": method}
        (folder / BASE_NOTE).write_text(json.dumps(about, indent=2) + "\n")


def _save_part(model: PreTrainedModel, folder: Path, ranks: Ranks) -> None:
    """This rank's share of the weights, every one of them whole, in the order of their names."""
    places: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    for number, (name, parameter) in enumerate(sorted(model.named_parameters())):
        owner = number % ranks.count
        places[name] = f"model-{owner + 1:05d}-of-{ranks.count:05d}.safetensors"
        value = whole(parameter.detach())  # which takes every rank
        if owner == ranks.number:
            tensors[name] = value.cpu().contiguous()
    file = f"model-{ranks.number + 1:05d}-of-{ranks.count:05d}.safetensors"
    save_file(tensors, folder / file, metadata={"format": "pt"})
    if ranks.is_first:
        index = {"metadata": {}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)


def after_layers(model: PreTrainedModel) -> set[str]:
    """The names of the weights that stand after the layers: the last norm and an untied head."""
    place = layer_list(model)[0]
    prefix = place.rpartition(".")[0]
    names: set[str] = set()
    passed = False
    for child, module in model.get_submodule(prefix).named_children():
        if passed:
            names |= {f"{prefix}.{child}.{n}" for n, _ in module.named_parameters()}
        passed = passed or f"{prefix}.{child}" == place
    head = _weights_of(model, output_head(model))
    return names | (head - _weights_of(model, model.get_input_embeddings()))


def _weights_of(model: nn.Module, module: object) -> set[str]:
    """The names under which the model lists a module's own weights."""
    if not isinstance(module, nn.Module):
        return set()
    own = {id(p) for p in module.parameters()}
    return {name for name, p in model.named_parameters() if id(p) in own}


def fp32_master(parameter: nn.Parameter) -> nn.Parameter:
    """`parameter` itself where it is fp32 and whole, else one in fp32 that collects its gradients.

    A step of AdamW is often smaller than the rounding of bf16, which would lose it. Of a sharded
    parameter it is this rank's rows, in place where they are fp32.
    """
    rows = local(parameter)
    if rows is parameter and parameter.dtype == torch.float32:
        return parameter
    master = nn.Parameter(rows.detach().float())

    def collect(source: Tensor) -> None:
        assert source.grad is not None
        grad = local(source.grad)
        if master.grad is None:
            master.grad = grad.float()
        else:
            master.grad.add_(grad)
        source.grad = None

    parameter.register_post_accumulate_grad_hook(collect)
    return master
