"""A second device in this process, made of the first: its tensors hold the CPU's numbers, and no
operation takes some of its tensors beside some of the CPU's, as none does on a GPU.

What runs on it computes what it would, so results can be compared, and a tensor that was left on
the other device is found without a GPU. PyTorch lets Python be the backend of its spare device
type; every operation comes through one function here.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "far"
aten = torch.ops.aten
# What may have a tensor of each device.
MOVES = {aten._to_copy, aten.to, aten.copy_}


class FarTensor(torch.Tensor):
    """A tensor of the second device; `near` holds its numbers."""

    near: torch.Tensor

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> FarTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            near.shape,
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=torch.device(NAME, 0),
        )
        made.near = near
        return made

    @property
    def data(self) -> FarTensor:
        return FarTensor(self.near)

    @data.setter
    def data(self, other: FarTensor) -> None:
        self.near = other.near

    def tolist(self) -> Any:
        return self.near.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """`torch.tensor` fills its memory without an operation, so it is filled here and moved."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor and (device := kwargs.pop("device", None)) is not None:
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


class _Dispatch(TorchDispatchMode):
    """Sees operations that have no far tensor among their operands yet: making and moving."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = tree_leaves((args, kwargs))
    tensors = [x for x in given if isinstance(x, torch.Tensor)]
    far = [x for x in tensors if isinstance(x, FarTensor)]
    devices = [x for x in given if isinstance(x, torch.device)]
    goes_far = devices[-1].type == NAME if devices else bool(far)
    if func.overloadpacket is aten.copy_:
        goes_far = isinstance(args[0], FarTensor)
    if far and func.overloadpacket not in MOVES:
        # A single number may come from anywhere.
        left = [tuple(x.shape) for x in tensors if not isinstance(x, FarTensor) and x.dim() > 0]
        if left:
            raise RuntimeError(f"{func} was given tensors {left} of the CPU among those of {NAME}")
    out = func(*tree_map(_near, args), **tree_map(_near, kwargs))
    if not goes_far:
        return out
    # What was changed in place is the same tensor still.
    known = {id(x.near): x for x in far}
    return tree_map(lambda x: known[id(x)] if id(x) in known else _far(x), out)


def _near(x: Any) -> Any:
    if isinstance(x, torch.device):
        return torch.device("cpu")
    return x.near if isinstance(x, FarTensor) else x


def _far(x: Any) -> Any:
    return FarTensor(x) if isinstance(x, torch.Tensor) else x


class _Module(_DummyBackendModule):
    """`torch.far`, of which checkpointing asks more than the dummy has."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, device: int = 0) -> torch.Tensor:
        return torch.empty(0)

    def set_rng_state(self, state: torch.Tensor, device: int = 0) -> None:
        pass


def register() -> None:
    """Make the device known to this process, for good."""
    _setup_privateuseone_for_python_backend(NAME, _Module())
    # A module's weights become other tensors, not other numbers of the same.
    torch.__future__.set_overwrite_module_params_on_conversion(True)


@contextmanager
def second_device() -> Generator[torch.device]:
    """The second device, while the block runs."""
    with _Functions(), _Dispatch():
        yield torch.device(NAME, 0)
