"""The method of a run, put on a model: what learns, and how to see the base again.

The methods differ in nothing else: one loop trains whatever this leaves with a gradient.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from timechat.model.adapt import (
    adapters,
    attach,
    disabled,
    output_head,
    set_strength,
    target_layers,
)
from timechat.model.choose import layer_list, number_of, set_activation
from timechat.model.peft import save_adapter
from timechat.model.quantise import features, quantise
from timechat.model.ranks import ALONE, Ranks, shard
from timechat.model.weights import Originals, after_layers, learning_names, release, save_weights
from timechat.recipe import Adapt, Full, Layers, Lora, Qlora


class Change:
    """What a run changes of `model`.

    `alpha` is the adapters' at full strength; `originals` are kept where the model's own weights
    learn; `activation` is the base's, where the run changes it; `ranks` are those that learn it
    together.
    """

    def __init__(
        self, model: PreTrainedModel, activation: str | None = None, ranks: Ranks = ALONE
    ) -> None:
        self.model, self.ranks = model, ranks
        layers = adapters(model)
        self.alpha = next((layer.alpha for layer in layers.values()), 0.0)
        self.originals = None if layers else Originals(model)
        self.activation = activation

    @contextmanager
    def base(self) -> Generator[None]:
        """The model as it was before the run, while the block runs."""
        inner = self.originals.restored() if self.originals else disabled(self.model)
        with inner, self._activated():
            yield

    def of_base(self, parameter: Tensor) -> Tensor:
        """What a weight of the model was before the run."""
        return self.originals.of(parameter) if self.originals else parameter

    def strengthen(
        self, strength: float, into: Sequence[Tensor], learned: Sequence[Tensor]
    ) -> None:
        """Leave `strength` of what was learned in the model's parameters `into`."""
        if self.originals is None:
            set_strength(self.model, self.alpha * strength)
        elif strength != 1:
            self.originals.towards(into, learned, strength)

    @contextmanager
    def _activated(self) -> Generator[None]:
        if self.activation is None:
            with nullcontext():
                yield
            return
        ours = set_activation(self.model, self.activation)
        try:
            yield
        finally:
            set_activation(self.model, ours)


class Sequel(Change):
    """What a second training changes of a model with adapters: its base is the model as it was when
    this began, adapters and all."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._learned = [p for layer in adapters(model).values() for _, p in layer.parts()]
        self._former = [p.detach().clone() for p in self._learned]

    @contextmanager
    def base(self) -> Generator[None]:
        now = [p.detach().clone() for p in self._learned]
        self._put(self._former)
        try:
            yield
        finally:
            self._put(now)

    def _put(self, values: Sequence[Tensor]) -> None:
        for place, value in zip(self._learned, values, strict=True):
            place.data.copy_(value)


def begin_again(model: PreTrainedModel, adapt: Adapt) -> Change:
    """Make a model that learned before ready to learn more, held to what it is now."""
    if adapters(model):
        return Sequel(model)
    assert isinstance(adapt, Full | Layers)
    release(model, adapt)
    return Change(model)


def begin(
    model: PreTrainedModel, adapt: Adapt, alpha: float, seed: int, ranks: Ranks = ALONE
) -> Change:
    """Make `model` ready to learn as the recipe's section `adapt` says, on all `ranks`.

    Raises ModelError when the model has not what the section names.
    """
    before = set_activation(model, adapt.activation) if adapt.activation else None
    if isinstance(adapt, Qlora):
        quantise(model, adapt.bits, but=output_head(model))
    if isinstance(adapt, Lora):
        # alpha / √rank is alpha · √rank / rank: any reader of PEFT's file gets the same scale.
        scale = adapt.rank**0.5 if adapt.rslora else 1.0
        attach(model, adapt.rank, alpha * scale, adapt.targets, seed, adapt.layers)
    else:
        assert isinstance(adapt, Full | Layers)
        release(model, adapt)
        if ranks.count > 1:
            shard(model, output_head(model))
    return Change(model, before, ranks)


def name_method(adapt: Adapt) -> str:
    """The method in a few words, for the report."""
    if isinstance(adapt, Lora):
        targets = adapt.targets if isinstance(adapt.targets, str) else ", ".join(adapt.targets)
        where = "" if adapt.layers == "all" else f" of layers {adapt.layers}"
        base = f" on a base in {adapt.bits} bits" if isinstance(adapt, Qlora) else ""
        return f"LoRA, rank {adapt.rank}, {targets} linear layers{where}{base}"
    if isinstance(adapt, Layers):
        more = [name for name in ("embeddings", "head") if getattr(adapt, name)]
        return " and ".join([f"layers {adapt.layers}", *more])
    return "every weight"


def name_targets(adapt: Adapt) -> str:
    """What a checkpoint says that was trained."""
    targets = adapt.targets if isinstance(adapt, Lora) else name_method(adapt)
    return targets if isinstance(targets, str) else ",".join(targets)


def count_learning(model: PreTrainedModel, adapt: Adapt) -> tuple[int, int]:
    """(weights that would learn under `adapt`, the number of the lowest layer with any)."""
    place, every = layer_list(model)
    if isinstance(adapt, Lora):
        layers = target_layers(model, adapt.targets, adapt.layers)
        size = sum(adapt.rank * sum(features(layer)) for layer in layers.values())
        names = list(layers)
    else:
        assert isinstance(adapt, Full | Layers)
        chosen = learning_names(model, adapt)
        size = sum(p.numel() for name, p in model.named_parameters() if name in chosen)
        names = list(chosen)
    above = after_layers(model)
    reach = [0 if name not in above else len(every) for name in names]
    numbers = [number_of(name, place) for name in names]
    return size, min(r if n is None else n for n, r in zip(numbers, reach, strict=True))


def save_model(
    model: PreTrainedModel,
    folder: Path,
    base: str,
    digest: str,
    what: str,
    ranks: Ranks = ALONE,
) -> None:
    """Write what a run changed: adapters as PEFT does, or the whole model as transformers does."""
    if not adapters(model):
        save_weights(model, folder, base, digest, what, ranks)
    elif ranks.is_first:
        save_adapter(model, folder, base, digest, what)
