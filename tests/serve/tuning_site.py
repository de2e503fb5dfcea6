"""A server whose callers may fine-tune, around a scripted engine; in this process or its own."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import uvicorn

from serve.conftest import Site, build_responder, says
from timechat.engine.fake import FakeEngine
from timechat.ledger.database import open_ledger
from timechat.model.load import Source
from timechat.serve.app import create_app
from timechat.serve.keys import Keys
from timechat.serve.registry import Registry, Served
from timechat.serve.settings import Settings
from timechat.serve.studio.mount import mount_studio
from timechat.serve.tuning import ROUTERS, Tuning, with_uploads
from timechat.stages.serve import Opened


class TuningSite(Site):
    """A site that lets two projects fine-tune `tiny`; `command` is what its worker runs."""

    def __init__(
        self, state: Path, ledger: str | Path, command: tuple[str, ...], base: Path | None = None
    ) -> None:
        self.keys = keys = Keys(["open"])
        keys.add("key-a", "alpha")
        keys.add("key-b", "beta")
        self.registry = Registry(1.0)
        self.engine = FakeEngine(says("base"))
        self.responder = build_responder(self.engine)
        self.app = create_app(self.registry, with_uploads(Settings()), keys, ROUTERS)
        opened = Opened("tiny", Source("tiny", base or state), "d1")
        self.ledger = open_ledger(ledger)
        mount_studio(self.app, self.ledger)
        self.tuning = Tuning(state, self.ledger, [opened], lambda _: None)
        self.tuning.worker.command = command
        self.tuning.attach(self.app, self.registry)

    async def open(self) -> None:
        await self.registry.add(Served("tiny", self.responder, "d1"))
        await self.registry.add(Served("ready-run", self.responder, "d2"))


def serve_forever(site: TuningSite, port: int) -> None:
    """Serve on a port of this machine until the process is ended."""
    config = uvicorn.Config(site.app, port=port, log_level="error", lifespan="off")

    async def serve() -> None:
        await site.open()
        site.tuning.start(site.keys)
        await uvicorn.Server(config).serve()

    assert threading.current_thread() is threading.main_thread()
    asyncio.run(serve())
