"""Tensors in files by rank: each writes the rows it has, and whoever reads takes the rows it wants.

`NAME.safetensors` is one rank's; of several ranks each writes `NAME-1of2.safetensors`, where the
header says of a sharded tensor at which row it begins. A tensor that is whole is written once, by
the first rank. So what was saved by any number of ranks is read by any other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, cat

from timechat.errors import CheckpointError
from timechat.model.ranks import Ranks

# (first row here, number of rows everywhere); None of a whole tensor.
Rows = tuple[int, int] | None


def write_pieces(
    folder: Path, name: str, tensors: Mapping[str, tuple[Tensor, Rows]], ranks: Ranks
) -> None:
    """Write this rank's part of `tensors`; every rank calls it with the same names."""
    own = {key: (t, rows) for key, (t, rows) in tensors.items() if rows or ranks.is_first}
    starts = {key: rows[0] for key, (_, rows) in own.items() if rows}
    save_file(
        {key: tensor.detach().cpu().contiguous() for key, (tensor, _) in own.items()},
        folder / _file_name(name, ranks),
        metadata={"starts": json.dumps(starts)} if starts else None,
    )


class Pieces:
    """The tensors called `name` in `folder`, however many ranks wrote them."""

    def __init__(self, folder: Path, name: str) -> None:
        files = [*folder.glob(f"{name}.safetensors"), *folder.glob(f"{name}-*of*.safetensors")]
        self._where: dict[str, list[tuple[int, Any]]] = {}
        for path in sorted(files):
            file: Any = safe_open(path, framework="pt")
            starts = json.loads((file.metadata() or {}).get("starts", "{}"))
            for key in file.keys():  # noqa: SIM118 - it is no mapping
                self._where.setdefault(key, []).append((starts.get(key, 0), file))

    def keys(self) -> list[str]:
        return list(self._where)

    def read(self, key: str, rows: Rows = None, count: int = 0) -> Tensor:
        """The tensor, or the `count` of its rows that begin at `rows`. Raises CheckpointError."""
        if key not in self._where:
            raise CheckpointError(f"the checkpoint has no tensor {key!r}")
        parts = sorted(self._where[key], key=lambda part: part[0])
        if rows is None:
            found = [file.get_tensor(key) for _, file in parts]
            return found[0] if len(found) == 1 else cat(found)
        first, end = rows[0], rows[0] + count
        found = [parts[0][1].get_slice(key)[:0]]
        for start, file in parts:
            piece = file.get_slice(key)
            low, high = max(first, start), min(end, start + piece.get_shape()[0])
            if low < high:
                found.append(piece[low - start : high - start])
        return cat(found)


def _file_name(name: str, ranks: Ranks) -> str:
    part = "" if ranks.count == 1 else f"-{ranks.number + 1}of{ranks.count}"
    return f"{name}{part}.safetensors"
