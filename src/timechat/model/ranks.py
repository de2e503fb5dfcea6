"""Several processes, one run: which of them this is, and how a model's weights lie over them.

torchrun starts the processes and says so in the environment; one process is the case of one rank.
Adapters are whole on every rank and their gradients are added up. Weights of the model itself that
learn are sharded (FSDP2): each rank keeps its rows of every matrix, with their gradient and
optimizer, and the layers gather what they need when they need it. Which rows of a step a rank
takes is decided by whoever builds the steps.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from timechat.model.choose import layer_list

Row = TypeVar("Row")
# The first rank may be busy alone for hours, with questions before and after.
PATIENCE = timedelta(days=2)


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process is `number` (from 0) of `count`."""

    number: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        return self.number == 0

    def take(self, rows: Sequence[Row]) -> list[Row]:
        """This rank's share of `rows`: all ranks together have each row once."""
        return list(rows[self.number :: self.count])

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over all ranks into each tensor."""
        if self.count > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def total(self, *numbers: float) -> list[float]:
        """Each number added up over all ranks."""
        if self.count == 1:
            return list(numbers)
        sums = torch.tensor(numbers, dtype=torch.float64, device=_device())
        dist.all_reduce(sums)
        return sums.tolist()

    def gather(self, rows: list[Row]) -> list[Row]:
        """The rows of every rank, in the order of the ranks."""
        if self.count == 1:
            return rows
        boxes: list[list[Row]] = [[] for _ in range(self.count)]
        dist.all_gather_object(boxes, rows)
        return [row for box in boxes for row in box]

    def tell(self, value: Row) -> Row:
        """What the first rank calls `value`."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=_device())
        return box[0]

    def wait(self) -> None:
        """Until every rank has come here."""
        if self.count > 1:
            dist.barrier()


ALONE = Ranks()


def join() -> Ranks:
    """The ranks that torchrun started this process among; outside of it, one."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return ALONE
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    return Ranks(dist.get_rank(), count)


def leave() -> None:
    """Part from the other ranks, if there were any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def shard(model: PreTrainedModel, head: nn.Module | None) -> None:
    """Keep a rank's rows only of each weight, but for the head's (and embeddings tied to it).

    The head works on rows of its own choosing, a chunk at a time, outside of any layer's forward.
    """
    trunk = cast(nn.Module, getattr(model, model.base_model_prefix))
    kept = set(head.parameters()) if head is not None else set[nn.Parameter]()
    for part in [*layer_list(model)[1], trunk]:
        # Nothing stays gathered: weights change between two passes also without a backward one.
        sharded = fully_shard(part, ignored_params=kept, reshard_after_forward=True)
        # Losses are divided by the targets of all ranks already, so gradients are added.
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)


def is_sharded(tensor: Tensor) -> bool:
    """Whether only some rows of `tensor` lie here."""
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """The rows of `tensor` that lie here, in place; the tensor itself where it is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All rows of `tensor`, from every rank: each has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def rows_here(tensor: Tensor) -> tuple[int, int] | None:
    """(first row here, number of rows everywhere) of a sharded tensor; None of a whole one."""
    if not isinstance(tensor, DTensor):
        return None
    mesh: Any = tensor.device_mesh
    # As torch.chunk cuts: the last ranks have fewer rows, or none.
    size = -(-tensor.shape[0] // mesh.size())
    return min(tensor.shape[0], mesh.get_local_rank() * size), tensor.shape[0]


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
