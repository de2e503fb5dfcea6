"""A server whose callers may fine-tune, around a scripted engine; in this process or its own."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from openai import OpenAI

from serve.conftest import Site, build_responder, listening, says
from timechat.engine.fake import FakeEngine
from timechat.ledger.database import open_ledger
from timechat.model.load import Source
from timechat.serve import tuned
from timechat.serve.app import create_app
from timechat.serve.keys import Keys
from timechat.serve.registry import Registry, Served
from timechat.serve.settings import Settings
from timechat.serve.studio.mount import mount_studio
from timechat.serve.tuning import ROUTERS, Tuning, with_uploads
from timechat.stages.jobs import executor, worker
from timechat.stages.serving.serve import Opened

TRAINER = str(Path(__file__).parents[1] / "stages" / "jobs" / "trainer.py")


class TuningSite(Site):
    """A site that lets two projects fine-tune `name`; `command` is what its worker runs."""

    def __init__(
        self,
        state: Path,
        ledger: str | Path,
        command: tuple[str, ...],
        base: Path | None = None,
        name: str = "tiny",
    ) -> None:
        self.name = name
        self.keys = keys = Keys(["open"])
        keys.add("key-a", "alpha")
        keys.add("key-b", "beta")
        self.registry = Registry(1.0)
        self.engine = FakeEngine(says("base"))
        self.responder = build_responder(self.engine)
        self.app = create_app(self.registry, with_uploads(Settings()), keys, ROUTERS)
        opened = Opened(name, Source(name, base or state), "d1")
        self.ledger = open_ledger(ledger)
        mount_studio(self.app, self.ledger)
        self.tuning = Tuning(state, self.ledger, [opened], lambda _: None)
        self.tuning.worker.command = command
        self.tuning.attach(self.app, self.registry)

    async def open(self) -> None:
        await self.registry.add(Served(self.name, self.responder, "d1"))
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


@dataclass
class Place:
    url: str
    site: TuningSite

    def client(self, key: str = "key-a", **options: Any) -> OpenAI:
        return OpenAI(
            base_url=f"{self.url}/v1",
            api_key=key,
            _strict_response_validation=True,
            max_retries=0,
            **options,
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Generator[Place]:
    with open_place(tmp_path_factory.mktemp("state")) as opened:
        yield opened


@contextmanager
def open_place(state: Path, name: str = "tiny") -> Generator[Place]:
    """A listening server whose jobs are trained by a stand-in."""
    patch = pytest.MonkeyPatch()
    patch.setattr(worker, "LOOK_S", 0.05)
    patch.setattr(executor, "BEAT_S", 0.05)

    def open_tuned(name: str, folder: Path) -> Any:
        assert folder.is_dir()
        answer = build_responder(FakeEngine(says(f"I am {name}")))
        return Opened(name, Source(name, folder), "d3"), answer

    patch.setattr(tuned, "open_tuned", open_tuned)
    command = (sys.executable, "-S", TRAINER, "0.01")
    site = TuningSite(state, state / "ledger.db", command, name=name)
    site.tuning.start(site.keys)
    with listening(site) as url:
        yield Place(url, site)
    site.tuning.stop()
    patch.undo()


@pytest.fixture
def client(place: Place) -> Generator[OpenAI]:
    with place.client() as made:
        yield made


def rows(count: int = 12) -> bytes:
    lines = [
        {"messages": [{"role": "user", "content": f"q{n}"},
                      {"role": "assistant", "content": f"a{n}"}]}
        for n in range(count)
    ]  # fmt: skip
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def upload(client: OpenAI, content: bytes | None = None) -> str:
    file = ("../../evil.jsonl", content if content is not None else rows())
    return client.files.create(file=file, purpose="fine-tune").id


def finish(client: OpenAI, job: str) -> Any:
    deadline = time.monotonic() + 60
    while True:
        found = client.fine_tuning.jobs.retrieve(job)
        if found.status in ("succeeded", "failed", "cancelled"):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
