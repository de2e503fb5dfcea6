"""The frozen trunk: what the layers below the lowest that learns put out, worked out once and kept.

It never changes, so every later sight of a row begins where learning does. Rows are gone through
in a fixed order and fixed company, so a run that is continued fills it with the very same bytes.
Whether it is worth keeping, and where it fits, is the plan's decision.

Axes: T flat tokens, D hidden size, P shared prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from timechat.data.pack import Batch, Example, pack
from timechat.model.choose import layer_list
from timechat.model.head import hidden_states
from timechat.model.paths import path_of

# Rows that go through the trunk together.
COMPANY = 16


class _EnoughError(Exception):
    """The trunk has been passed; what lies above it is not wanted."""


class Trunk:
    """The outputs (tokens, D) of the first `depth` layers for rows, by the rows' token ids."""

    def __init__(self, model: PreTrainedModel, depth: int, file: Path | None = None) -> None:
        self.model, self.depth, self.file = model, depth, file
        path_of(model)  # tried on whole passes, before any is cut short
        self._layers: list[nn.Module] = list(layer_list(model)[1])
        self._kept: dict[tuple[int, ...], Tensor] = {}
        self._is_tuple = False

    @property
    def num_bytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in self._kept.values())

    def fill(self, rows: Iterable[Example], tick: Callable[[int], None] = lambda _: None) -> None:
        """Work out the trunk for every row once, in their order."""
        fresh = list({row.ids: row for row in rows if row.ids not in self._kept}.values())
        if not fresh:
            return
        place = self._allocate(sum(len(row.ids) for row in fresh))
        start = 0
        for at in range(0, len(fresh), COMPANY):
            part = fresh[at : at + COMPANY]
            found = self._pass(part)
            place[start : start + len(found)] = found.to(place.device)
            for row in part:
                self._kept[row.ids] = place[start : start + len(row.ids)]
                start += len(row.ids)
            tick(len(part))

    @contextmanager
    def entered(self, batch: Batch) -> Generator[None]:
        """The model beginning above the trunk, for exactly the rows of `batch`."""
        missing = [row for row in batch.rows if row.ids not in self._kept]
        if missing:
            self.fill(missing)
        hidden = self._flat(batch).to(self.model.device)[None]

        def enter(*inputs: Any, **options: Any) -> Any:
            return (hidden,) if self._is_tuple else hidden

        def skip(*inputs: Any, **options: Any) -> Any:
            given = inputs[0] if inputs else options["hidden_states"]
            return (given,) if self._is_tuple else given

        with _forwards(self._layers[: self.depth], [skip] * (self.depth - 1) + [enter]):
            yield

    def _flat(self, batch: Batch) -> Tensor:
        """The rows' outputs (T, D) laid out as the batch lays out its tokens."""
        prefix = batch.layout.prefix
        own = len(batch.rows) - len(batch.held)
        parts = [self._kept[batch.rows[0].ids][:prefix]] if prefix else []
        for number, row in enumerate(batch.rows):
            parts.append(self._kept[row.ids][prefix if number < own else 0 :])
        return torch.cat(parts)

    def _pass(self, rows: Sequence[Example]) -> Tensor:
        """The trunk's output for whole rows, one after the other (their tokens, D)."""
        # Together, but nothing shared: each row's own tokens are wanted whole.
        batch = pack(rows, share_prefix=False)
        found: list[Tensor] = []

        def keep(_: nn.Module, __: Any, output: Any) -> None:
            self._is_tuple = isinstance(output, tuple)
            found.append((output[0] if self._is_tuple else output)[0])

        def stop(*_: Any, **__: Any) -> Any:
            raise _EnoughError

        above = self._layers[self.depth : self.depth + 1]
        handle = self._layers[self.depth - 1].register_forward_hook(keep)
        try:
            with torch.no_grad(), _forwards(above, [stop] * len(above)):
                hidden_states(self.model, batch.ids, batch.layout, batch.target_index)
        except _EnoughError:
            pass
        finally:
            handle.remove()
        return found[0]

    def _allocate(self, tokens: int) -> Tensor:
        """Room for `tokens` outputs: in memory, or in the file where the plan says so."""
        width = int(self.model.config.get_text_config().hidden_size)
        if self.file is None:
            return torch.empty(tokens, width, dtype=self.model.dtype)
        size = torch.empty((), dtype=self.model.dtype).element_size()
        path = self.file.with_name(f"{self.file.name}-{len(self._kept)}")
        raw = np.memmap(path, dtype=np.uint8, mode="w+", shape=(tokens * width * size,))
        return torch.from_numpy(raw).view(self.model.dtype).view(tokens, width)


@contextmanager
def _forwards(
    layers: Sequence[nn.Module], forwards: Sequence[Callable[..., Any]]
) -> Generator[None]:
    """The layers with other forwards, while the block runs."""
    before = [vars(layer).get("forward") for layer in layers]
    for layer, forward in zip(layers, forwards, strict=True):
        layer.forward = forward
    try:
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            if old is None:
                del layer.forward
            else:
                layer.forward = old
