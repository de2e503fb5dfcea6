"""A server around a scripted engine: the whole API in milliseconds."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from conftest import build_tokenizer
from fastapi import FastAPI

from timechat.engine.fake import FakeEngine
from timechat.engine.local import LocalResponder
from timechat.engine.protocol import Request
from timechat.engine.scribe import ThreadScribe
from timechat.model.render import Renderer
from timechat.serve.app import create_app
from timechat.serve.keys import Keys
from timechat.serve.registry import Registry, Served
from timechat.serve.run import configured
from timechat.serve.settings import Settings

ANSWER = "Grüß Gott, 🙂 friend."


def says(text: str) -> Callable[[Request], list[int]]:
    """A script that answers `text`."""
    ids = list(build_tokenizer()(text, add_special_tokens=False)["input_ids"])
    return lambda _: ids


def build_responder(engine: FakeEngine, max_waiting: int = 64) -> LocalResponder:
    tokenizer = build_tokenizer()
    scribe = ThreadScribe(Renderer(tokenizer))
    return LocalResponder(engine, scribe, tokenizer.backend_tokenizer, max_waiting)


class Site:
    """An app with one scripted model named `tiny`, called in this process."""

    def __init__(self, engine: FakeEngine, settings: Settings, keys: Keys, waiting: int) -> None:
        self.engine = engine
        self.registry = Registry(settings.limits.drain_s)
        self.app: FastAPI = create_app(self.registry, settings, keys)
        self.responder = build_responder(engine, waiting)

    async def open(self) -> None:
        if not self.responder.ready:
            await self.registry.add(Served("tiny", self.responder, "d1"))

    def client(self, **options: Any) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://localhost", **options)

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            await self.open()
            async with self.client() as client:
                return await client.request(method, path, **options)

        return asyncio.run(call())

    def chat(self, **fields: Any) -> httpx.Response:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], **fields}
        return self.ask("POST", "/v1/chat/completions", json=body)

    def run(self, work: Callable[[httpx.AsyncClient], Coroutine[Any, Any, None]]) -> None:
        async def inside() -> None:
            await self.open()
            async with self.client() as client:
                await work(client)

        asyncio.run(inside())


def build_site(
    engine: FakeEngine | None = None,
    settings: Settings | None = None,
    keys: Keys | None = None,
    waiting: int = 64,
) -> Site:
    engine = engine or FakeEngine(says(ANSWER))
    return Site(engine, settings or Settings(), keys or Keys(), waiting)


@pytest.fixture
def site() -> Site:
    return build_site()


@contextmanager
def listening(site: Site) -> Iterator[str]:
    """The site on a real port, in a thread; yields its address."""
    config = configured(site.app, Settings(port=0))
    config.lifespan = "off"
    server = uvicorn.Server(config)

    async def serve() -> None:
        await site.open()
        await server.serve()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started:
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
