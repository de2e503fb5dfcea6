"""Low-rank adapters: attach, switch off, scale, merge. Their files are `peft`'s.

y = x Wᵀ + (alpha / rank) · (x Aᵀ) Bᵀ, with A (r, in) Kaiming-uniform and B (out, r) zero, so that
an adapter at its start equals its base (Hu et al. 2021, https://arxiv.org/abs/2106.09685).
W stays frozen in the base's dtype; A and B are fp32 masters, cast to the input's dtype in use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from timechat.errors import ModelError
from timechat.model.choose import choose_layers, layer_list, matches, number_of
from timechat.model.lowrank import Product, adapted
from timechat.model.quantise import QuantLinear, features, is_product, upright
from timechat.recipe import LayerChoice

# From a layer's name and a folded weight to another weight.
Rounding = Callable[[str, Tensor], Tensor]
# What an adapter can sit beside; GPT-2's Conv1D is a linear layer that holds its weight turned.
Base = nn.Linear | QuantLinear | Conv1D
# Names of linear layers that are attention's, over the families; every other one is MLP's.
_ATTENTION_PARTS = ("attn", "attention", "q_proj", "k_proj", "v_proj", "query_key_value")


class LoraLinear(nn.Module):
    """A frozen linear layer with a low-rank path beside it."""

    def __init__(self, base: Base, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base
        self.rank = rank
        self.alpha = alpha
        self.enabled = True
        # What `merged` applies to the folded weight, while it is asked.
        self.folding: Callable[[Tensor], Tensor] | None = None
        device = base.codes.device if isinstance(base, QuantLinear) else base.weight.device
        num_in, num_out = features(base)
        self.lora_a = nn.Parameter(torch.empty(rank, num_in, device=device))
        self.lora_b = nn.Parameter(torch.zeros(num_out, rank, device=device))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def is_beside(self) -> bool:
        """Whether the low-rank path is taken beside the base: neither off nor folded."""
        return self.enabled and self.folding is None

    def forward(self, x: Tensor) -> Tensor:
        if self.folding is not None:
            return F.linear(x, self.folding(self.folded()).to(x.dtype), self.base.bias)
        if not self.enabled:
            return self.base(x)
        return adapted(x, [self.product()], self.scale)[0]

    def product(self) -> Product:
        """What its adapted product is made of."""
        weight = self.base if isinstance(self.base, QuantLinear) else upright(self.base)
        return Product(weight, self.base.bias, self.lora_a, self.lora_b)

    def parts(self) -> tuple[tuple[str, nn.Parameter], ...]:
        """A and B with the letters that PEFT gives them."""
        return ("A", self.lora_a), ("B", self.lora_b)

    @torch.no_grad()
    def folded(self) -> Tensor:
        """The weight (out, in) with the update in it: computed in fp32, rounded once to what the
        base's was."""
        base = self.base
        is_coded = isinstance(base, QuantLinear)
        dense = base.dense(torch.float32) if is_coded else upright(base).detach().float()
        # One product into one new matrix: a large layer is there twice in fp32, not four times.
        found = torch.addmm(dense, self.lora_b, self.lora_a, alpha=self.scale)
        return found.to(base.dtype if is_coded else base.weight.dtype)


def together(layers: Sequence[nn.Module], x: Tensor) -> tuple[Tensor, ...]:
    """What each of `layers` makes of the same x; adapted ones in one go."""
    learning = [layer for layer in layers if isinstance(layer, LoraLinear) and layer.is_beside]
    if len(learning) < len(layers) or len({layer.scale for layer in learning}) > 1:
        return tuple(layer(x) for layer in layers)
    return adapted(x, [layer.product() for layer in learning], learning[0].scale)


def attach(
    model: nn.Module,
    rank: int,
    alpha: float,
    targets: str | Sequence[str],
    seed: int = 0,
    layers: LayerChoice = "all",
) -> int:
    """Freeze `model` and put adapters on its linear layers; returns the number of trained weights.

    `targets` is `all`, `attention`, `mlp` or a list of names and patterns, `layers` which decoder
    layers get any; the output head never does. The same seed gives the same start. Raises
    ModelError when the model has no such linear layer.
    """
    model.requires_grad_(False)
    chosen = target_layers(model, targets, layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, layer in chosen.items():
            put(model, name, LoraLinear(layer, rank, alpha))
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def target_layers(
    model: nn.Module, targets: str | Sequence[str], layers: LayerChoice = "all"
) -> dict[str, Base]:
    """The linear layers that `targets` and `layers` name. Raises ModelError when there is none."""
    head = output_head(model)
    linear = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, QuantLinear) or (is_product(layer) and layer is not head)
    }
    if not linear:
        kinds = sorted({type(m).__name__ for m in model.modules() if _is_matrix(m)})
        raise ModelError(
            f"{type(model).__name__} has no linear layer that an adapter could sit beside "
            f"(its matrices are {', '.join(kinds)}): adapt.method=full works"
        )
    if not isinstance(targets, str):
        for pattern in targets:
            if not any(matches(name, pattern) for name in linear):
                raise ModelError(f"adapt.targets: no linear layer's name matches {pattern!r}")
    if layers != "all":
        place, every = layer_list(model)
        chosen = choose_layers(layers, len(every))
        linear = {
            name: layer
            for name, layer in linear.items()
            if number_of(name, place) in chosen.numbers
            or any(matches(name, pattern) for pattern in chosen.patterns)
        }
    linear = {name: layer for name, layer in linear.items() if _wanted(name, targets)}
    if not linear:
        raise ModelError(f"the model has no linear layer for adapt.targets = {targets!r}")
    return linear


def _is_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return not isinstance(module, nn.Embedding) and weight is not None and weight.dim() == 2


def output_head(model: nn.Module) -> nn.Module | None:
    getter = getattr(model, "get_output_embeddings", None)
    return getter() if getter is not None else None


def adapters(model: nn.Module) -> dict[str, LoraLinear]:
    """The adapted layers by the name that the base model gives them."""
    return {n: layer for n, layer in model.named_modules() if isinstance(layer, LoraLinear)}


@contextmanager
def merged(model: nn.Module, rounding: Rounding | None = None) -> Generator[None]:
    """The model as `merge` would leave it, while the block runs; nothing learns meanwhile.

    A weight is folded when its layer is asked and let go of at once, so that a large model is never
    there twice. `rounding` is applied to each folded weight, and told the layer's name.
    """
    layers = adapters(model)
    for name, layer in layers.items():
        layer.folding = partial(rounding, name) if rounding else _as_it_is
    try:
        yield
    finally:
        for layer in layers.values():
            layer.folding = None


def _as_it_is(weight: Tensor) -> Tensor:
    return weight


@contextmanager
def disabled(model: nn.Module) -> Generator[None]:
    """The base model, while the block runs."""
    layers = list(adapters(model).values())
    before = [layer.enabled for layer in layers]
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer.enabled = was


def set_strength(model: nn.Module, alpha: float) -> None:
    """Set every adapter's alpha: its strength is alpha / rank."""
    for layer in adapters(model).values():
        layer.alpha = alpha


def merge(model: nn.Module) -> None:
    """Fold every adapter into its weight (computed in fp32, rounded once) and drop it.

    A quantised weight becomes a dense one of the dtype that it was made from, and the model is in
    that dtype then.
    """
    dtype: torch.dtype | None = None
    for name, layer in adapters(model).items():
        base, folded = layer.base, layer.folded()
        if isinstance(base, QuantLinear):
            dense = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
            dense.weight = nn.Parameter(folded, requires_grad=False)
            dense.bias = base.bias
            put(model, name, dense)
            dtype = base.dtype
        else:
            upright(base).data.copy_(folded)
            put(model, name, base)
    if dtype is not None:
        model.to(dtype)


def _wanted(name: str, targets: str | Sequence[str]) -> bool:
    if not isinstance(targets, str):
        return any(matches(name, pattern) for pattern in targets)
    attention = any(part in name for part in _ATTENTION_PARTS)
    return targets == "all" or attention == (targets == "attention")


def put(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Set the module `name` of `model`."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)
