"""Which parts of a model a recipe means: layers by number, range or name, and its activation.

Names are those that transformers gives; a pattern is matched as a shell matches file names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from timechat.errors import ModelError, nearest

_RANGE = re.compile(r"(\d+)-(\d+)$")
# What configurations call the activation of their MLP layers.
_ACTIVATION_KEYS = ("hidden_act", "hidden_activation", "activation_function", "activation")


@dataclass(frozen=True, slots=True)
class Chosen:
    """Layers by number, and patterns of names beside them."""

    numbers: frozenset[int]
    patterns: tuple[str, ...] = ()


def layer_list(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The model's decoder layers and the name of their list. Raises ModelError."""
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not lists:
        raise ModelError(f"{type(model).__name__} has no list of layers")
    # The outermost list; lists inside a layer (experts) have longer names.
    return min(lists, key=lambda pair: pair[0].count("."))


def choose_layers(spec: int | str | Sequence[int | str], num_layers: int) -> Chosen:
    """The layers that `spec` of a recipe means. Raises ModelError for one that is not there."""
    if isinstance(spec, int):
        if not 1 <= spec <= num_layers:
            raise ModelError(f"adapt.layers = {spec}: the model has {num_layers} layers")
        return Chosen(frozenset(range(num_layers - spec, num_layers)))
    if spec == "all":
        return Chosen(frozenset(range(num_layers)))
    if spec == "auto":
        return choose_layers(max(1, -(-num_layers // 6)), num_layers)
    numbers: set[int] = set()
    patterns: list[str] = []
    for part in [spec] if isinstance(spec, str) else spec:
        found = _RANGE.match(part) if isinstance(part, str) else None
        if isinstance(part, int) or part.isdigit():
            numbers.add(int(part))
        elif found:
            numbers.update(range(int(found[1]), int(found[2]) + 1))
        else:
            patterns.append(part)
    wrong = sorted(n for n in numbers if not 0 <= n < num_layers)
    if wrong:
        raise ModelError(
            f"adapt.layers names layer {wrong[0]}; the model's are 0 to {num_layers - 1}"
        )
    if not numbers and not patterns:
        raise ModelError(f"adapt.layers = {spec!r} names no layer (the model has {num_layers})")
    return Chosen(frozenset(numbers), tuple(patterns))


def number_of(name: str, layers: str) -> int | None:
    """The number of the layer that holds the module or weight `name`; None outside of them."""
    rest = name.removeprefix(f"{layers}.")
    first = rest.partition(".")[0]
    return int(first) if rest != name and first.isdigit() else None


def matches(name: str, pattern: str) -> bool:
    """Whether a dotted name is, ends in, or lies under `pattern`."""
    return any(
        fnmatchcase(name, form)
        for form in (pattern, f"{pattern}.*", f"*.{pattern}", f"*.{pattern}.*")
    )


def find_activation(model: nn.Module) -> str | None:
    """The activation that the configuration names; None where it names none."""
    key = activation_key(_config(model))
    return None if key is None else str(getattr(_config(model), key))


def set_activation(model: PreTrainedModel, name: str) -> str:
    """Give every layer the activation `name`, and the configuration too; returns the former.

    Raises ModelError for a name that is not known, or a model that does not keep its activation
    as a module of its own.
    """
    if name not in ACT2FN:
        raise ModelError(f"adapt.activation = {name!r} is not known ({nearest(name, ACT2FN)})")
    key = activation_key(_config(model))
    if key is None:
        raise ModelError(f"{type(model).__name__} names no activation, so it cannot be changed")
    before = str(getattr(_config(model), key))
    kind = type(ACT2FN[before])
    layers = layer_list(model)[1]
    places = [
        (module, child)
        for module in layers.modules()
        for child, inner in module.named_children()
        if type(inner) is kind
    ]
    if not places:
        raise ModelError(f"{type(model).__name__} keeps its activation out of reach")
    for module, child in places:
        setattr(module, child, ACT2FN[name])
    setattr(_config(model), key, name)
    return before


def activation_key(config: Any) -> str | None:
    """What a configuration calls the activation of its MLP layers; None where it names none."""
    return next((k for k in _ACTIVATION_KEYS if isinstance(getattr(config, k, None), str)), None)


def _config(model: nn.Module) -> Any:
    config: Any = getattr(model, "config", None)
    return None if config is None else config.get_text_config()
