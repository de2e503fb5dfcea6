"""A run as it was: checkpoints that are loaded because somebody moved the slider."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

from timechat.serve.registry import Registry, Served
from timechat.stages.serving.serve import find_models, open_model

# Each is an engine with weights of its own; the one that was asked longest ago makes room.
MAX_EARLIER = 2


class Earlier:
    """Checkpoints under names of their own in the registry."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._loading = asyncio.Lock()
        self._names: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    async def load(self, model: Served, run: Path, step: int) -> str:
        """The name under which `run` as it was at `step` answers. Raises RunError."""
        name = f"{model.name}@step-{step}"
        async with self._loading:
            if name not in self._names:
                (found,) = await asyncio.to_thread(find_models, [f"{run}@step-{step}"], _quiet)
                found = replace(found, shares_base=True)  # the run itself is served
                responder = await asyncio.to_thread(open_model, found)
                details = {"run": str(run)}
                served = Served(name, responder, found.digest, model.project, details=details)
                await self.registry.add(served)
            self._names[name] = None
            self._names.move_to_end(name)
            while len(self._names) > MAX_EARLIER:
                oldest, _ = self._names.popitem(last=False)
                await self.registry.remove(oldest)
        return name


def kept_steps(run: Path) -> list[int]:
    """The steps of the checkpoints that the run still has, in order."""
    names = (path.name.removeprefix("step-") for path in (run / "checkpoints").glob("step-*"))
    return sorted(int(name) for name in names if name.isdigit())


def _quiet(_: str) -> None:
    pass
