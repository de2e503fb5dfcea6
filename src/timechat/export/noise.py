"""What a format's rounding does to a model, found out on that model: where tolerances come from.

A format rounds each weight to a grid. Here the evaluated model gets, on each weight, an error drawn
evenly from half a step below to half a step above, with the step that the format's grid has there:
the same size of error as rounding makes, but made by nobody's quantiser. How far that moves the
model is what a right export may move it; `tolerance` says how much of it is allowed. In bf16
arithmetic every product is rounded once more, which moves it as a weight rounded once more would
(Higham, Accuracy and Stability of Numerical Algorithms, section 3.1: errors of a product carried
back into its matrix).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from timechat.errors import ExportError
from timechat.export.families import family_of
from timechat.export.ggufile import Slot, plan_slots
from timechat.export.weights import Weights
from timechat.model.adapt import merge, output_head
from timechat.model.quantise import BLOCK, QuantLinear

# Steps between the least and the greatest value of a block, for grids with a zero point, and from
# zero to the greatest, for grids around zero.
_SPANS = {Kind.Q4_1: 15, Kind.Q5_1: 31}
_AROUND_ZERO = {Kind.Q4_0: 8, Kind.Q5_0: 16, Kind.Q8_0: 127}
# Formats of floats, with the bits after the leading one.
FLOATS = {Kind.BF16: 7, Kind.F16: 10, torch.bfloat16: 7, torch.float16: 10}
_GGUF_BLOCK = 32
# What files call the output matrix; transformers may call it otherwise once it is loaded.
HEADS = ("lm_head", "embed_out")

Steps = Iterable[tuple[str, Tensor]]


def steps_of_gguf(weights: Weights, config: PretrainedConfig, quantisation: str) -> Steps:
    """The step of each weight of a GGUF file, under the weights' own names and axes."""
    for slot in plan_slots(weights, config, quantisation):
        if isinstance(slot.source, str) and slot.kind != Kind.F32:
            yield slot.source, step_of_slot(slot, weights.exact(slot.source), config)


def step_of_slot(slot: Slot, value: Tensor, config: PretrainedConfig) -> Tensor:
    """The step at each value of a weight that a GGUF file holds in `slot`."""
    family, source = family_of(config), cast(str, slot.source)
    step = step_of(slot.kind, family.turn(source, value, config).contiguous())
    return family.back(source, step, config)


def steps_of_merge(weights: Weights) -> Steps:
    """The step of each weight that an adapter changed: it is rounded once, as the base has it."""
    for name in weights.adapted:
        kind = weights.entries[name].dtype
        if kind in FLOATS:
            yield name, step_of(kind, weights.exact(name))


def steps_of_bf16(model: PreTrainedModel) -> Steps:
    """A rounding of every matrix to bf16."""
    for name, parameter in cast(nn.Module, model).named_parameters():
        if parameter.dim() > 1:
            yield name, _spacing(parameter.detach().float().cpu(), FLOATS[Kind.BF16])


def steps_of_base(weights: Weights, bits: int) -> Steps:
    """The codes that a quantised base was held in while its adapter learned."""
    for name, entry in weights.entries.items():
        if is_coded(name, entry.shape):
            yield name, step_of_codes(weights.exact(name), bits)


def is_coded(name: str, shape: Sequence[int]) -> bool:
    """Whether a quantised base holds this weight in codes."""
    return len(shape) == 2 and "embed" not in name and "lm_head" not in name


def step_of_codes(value: Tensor, bits: int) -> Tensor:
    """The distance between two neighbouring codes, at each value."""
    flat = nn.functional.pad(value.flatten(), (0, -value.numel() % BLOCK)).view(-1, BLOCK)
    # 4 bits: sixteen values between -1 and 1, evenly spaced at worst where weights lie.
    step = flat.abs().amax(1, keepdim=True) * (1 / 127 if bits == 8 else 2 / 15)
    return step.expand(flat.shape).reshape(-1)[: value.numel()].view(value.shape)


def steps_of_engine(model: PreTrainedModel, bits: int) -> Steps:
    """The groups of 32 in which an engine holds matrices; embedding and head at 8 bits."""
    for name, parameter in cast(nn.Module, model).named_parameters():
        if parameter.dim() == 2:
            outer = "embed" in name or name.startswith("lm_head")
            kind = Kind.Q8_0 if bits == 8 or outer else Kind.Q4_1
            yield name, step_of(kind, parameter.detach().float().cpu())


def step_of(kind: Kind | torch.dtype, value: Tensor) -> Tensor:
    """The distance between two neighbouring values of the grid, at each value."""
    if isinstance(kind, torch.dtype) or kind in FLOATS:
        return _spacing(value, FLOATS[kind])
    whole = value.shape[-1] % _GGUF_BLOCK == 0
    blocks = value.unflatten(-1, (-1, _GGUF_BLOCK)) if whole else value.unsqueeze(-2)
    if kind in _SPANS:
        low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
        step = (high - low) / _SPANS[kind]
    else:
        step = blocks.abs().amax(-1, keepdim=True) / _AROUND_ZERO[kind]
    return step.expand(blocks.shape).flatten(-2)


@torch.no_grad()
def roughen(model: PreTrainedModel, steps: Steps, seed: int = 0) -> None:
    """Add to each named weight an error of half a step at most. The model is spent by it.

    Adapters are folded in first, so that names are the files'. The same seed gives the same error.
    """
    draw = torch.Generator().manual_seed(seed)
    for name, step in steps:
        parameter = _parameter(model, name)
        parameter.add_(error_within(step, draw).to(parameter.device, parameter.dtype))


def rough_in_bf16(name: str, weight: Tensor) -> Tensor:
    """A weight with an error of half a step of bf16 at most, always the same one for its name.

    In fp32: bf16 would round most of the errors away again.
    """
    draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    wide = weight.float()
    return wide + error_within(_spacing(wide.cpu(), FLOATS[Kind.BF16]), draw).to(wide.device)


def error_within(step: Tensor, draw: torch.Generator) -> Tensor:
    """Half a step at most, to either side."""
    return (torch.rand(step.shape, generator=draw) - 0.5) * step


@torch.no_grad()
def fold(model: PreTrainedModel) -> None:
    """Adapters and codes to plain weights, in the model's own format."""
    dtype = model.dtype
    merge(model)
    for name, layer in list(cast(nn.Module, model).named_modules()):
        if isinstance(layer, QuantLinear):
            dense = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
            dense.weight = nn.Parameter(layer.dense(dtype), requires_grad=False)
            dense.bias = layer.bias
            parent, _, leaf = name.rpartition(".")
            setattr(cast(nn.Module, model).get_submodule(parent), leaf, dense)
    cast(nn.Module, model).to(dtype)


def _spacing(value: Tensor, mantissa: int) -> Tensor:
    """Between neighbouring floating-point numbers with so many bits after the leading one."""
    _, exponent = torch.frexp(value)
    return torch.ldexp(torch.ones_like(value), exponent - 1 - mantissa)


def _parameter(model: PreTrainedModel, name: str) -> nn.Parameter:
    """By its name in the files, which may lack the model's prefix."""
    for full in _names(model, name):
        try:
            return cast(nn.Module, model).get_parameter(full)
        except AttributeError:
            continue
    head: Any = output_head(model)
    if head is not None and name.split(".")[-2] in HEADS:
        return head.weight
    raise ExportError(f"the model has no weight {name}, though its files do")


def _names(model: PreTrainedModel, name: str) -> Iterator[str]:
    yield name
    prefix: Any = model.base_model_prefix
    yield f"{prefix}.{name}"
