"""A served run follows its own link: where `RUN/best` moves, that takes over the run's name.

`timechat learn RUN --switch` and `--back`, the button in the studio and a person with `ln` all
move that link (`stages.runs.versions`). The new version is loaded and warmed first, the name
changes hands between two requests, and answers that run on the former one end there (`registry`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from timechat.errors import UserError
from timechat.serve.registry import Registry, Served
from timechat.stages.runs.versions import BEST
from timechat.stages.serving.serve import Opened, find_models, open_model

LOOK_S = 1.0


def open_again(former: Opened, say: Callable[[str], None]) -> Served:
    """What the run's link names now, served as the former was. Raises UserError."""
    (found,) = find_models([former.source.name], say, former.engine, former.bits)
    found = replace(found, shares_base=former.shares_base)
    details = {"run": str(found.run)} if found.run else {}
    return Served(former.name, open_model(found), found.digest, details=details)


class Follower:
    """Watches the links of the runs that a server was started with."""

    def __init__(
        self,
        registry: Registry,
        say: Callable[[str], None] = lambda _: None,
        open_: Callable[[Opened, Callable[[str], None]], Served] = open_again,
    ) -> None:
        self.registry, self.say, self.open = registry, say, open_
        self._runs: dict[Path, Opened] = {}
        # What answers for each run, and what its link led to when that could not be loaded.
        self._loaded: dict[Path, str] = {}
        self._failed: dict[Path, str] = {}
        self._moving = asyncio.Lock()

    def watch(self, opened: Opened) -> None:
        """Follow this model's run from now on; a checkpoint that was named itself stays."""
        run = opened.run
        if run is not None and "@" not in opened.source.name:
            self._runs[run] = opened
            self._loaded[run] = os.path.realpath(opened.source.adapter or opened.source.folder)

    async def look(self, run: Path) -> bool:
        """See where the run's link leads, and let that answer; whether it is what answers now.

        A version that cannot be loaded changes nothing, and is not tried again before the link
        moves again.
        """
        opened = self._runs.get(run)
        if opened is None:
            return False
        async with self._moving:
            target = os.path.realpath(run / BEST)
            if target == self._loaded[run]:
                self._failed.pop(run, None)
                return True
            if target == self._failed.get(run):
                return False
            try:
                served = await asyncio.to_thread(self.open, opened, self.say)
                former = next((m for m in self.registry if m.name == opened.name), None)
                if former is not None:
                    served = replace(served, project=former.project)
                await self.registry.add(served)
            except UserError as error:
                self._failed[run] = target
                self.say(f"{opened.name} answers as before: {error}")
                return False
            self._loaded[run] = target
            self.say(f"{opened.name} answers from {Path(target).relative_to(run)} now")
            return True

    async def follow(self) -> None:
        """Look at every run now and then, for as long as the server runs."""
        while True:
            for run in list(self._runs):
                await self.look(run)
            await asyncio.sleep(LOOK_S)
