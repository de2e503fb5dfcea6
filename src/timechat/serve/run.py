"""A server from start to end: listen, load, answer, drain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from types import FrameType

import uvicorn
from fastapi import APIRouter, FastAPI

from timechat.ledger.database import Ledger
from timechat.serve.app import create_app
from timechat.serve.connection import BoundedProtocol
from timechat.serve.follow import Follower
from timechat.serve.keys import Keys
from timechat.serve.registry import Registry, Served
from timechat.serve.settings import Settings
from timechat.serve.studio.mount import mount_studio
from timechat.serve.tuning import ROUTERS, Tuning, with_uploads
from timechat.stages.serving.serve import Opened, open_model


class Server(uvicorn.Server):
    """Drains before it stops listening: `/ready` says no at once, running answers finish. A second
    signal ends everything now."""

    def __init__(self, config: uvicorn.Config, registry: Registry, drain_s: float) -> None:
        super().__init__(config)
        self.registry = registry
        self.drain_s = drain_s
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        first = not self.registry.draining
        self.registry.draining = True
        if first:
            loop = asyncio.get_running_loop()
            loop.call_soon_threadsafe(self._drain, sig, frame)
        else:
            self.force_exit = True
            super().handle_exit(sig, frame)

    def _drain(self, sig: int, frame: FrameType | None) -> None:
        async def drain() -> None:
            await self.registry.close(self.drain_s)
            uvicorn.Server.handle_exit(self, sig, frame)

        self._draining = asyncio.create_task(drain())


def configured(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn listens: one parser of HTTP with bounds, whatever else is installed beside it."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=65,
        timeout_graceful_shutdown=5,
        http=BoundedProtocol,
        ws="none",
        h11_max_incomplete_event_size=64 << 10,
    )


def run(
    models: Iterable[Opened],
    settings: Settings,
    keys: Keys,
    say: Callable[[str], None],
    routers: Iterable[APIRouter] = (),
    ledger: Ledger | None = None,
    tuning: Tuning | None = None,
) -> None:
    """Serve until a signal; with a ledger, the studio's pages too; with `tuning`, its routes and
    worker. Raises ModelError where a model cannot be loaded."""
    asyncio.run(_run(list(models), settings, keys, say, routers, ledger, tuning))


async def _run(
    models: list[Opened],
    settings: Settings,
    keys: Keys,
    say: Callable[[str], None],
    routers: Iterable[APIRouter],
    ledger: Ledger | None,
    tuning: Tuning | None,
) -> None:
    registry = Registry(settings.limits.drain_s)
    if tuning is not None:
        settings, routers = with_uploads(settings), (*routers, *ROUTERS)
    app = create_app(registry, settings, keys, routers)
    follower: Follower = app.state.follower
    follower.say = say
    if ledger is not None:
        mount_studio(app, ledger)
    if tuning is not None:
        tuning.attach(app, registry)
        tuning.start(keys)
    server = Server(configured(app, settings), registry, settings.limits.drain_s)
    loading = asyncio.create_task(
        _load(models, registry, settings, server, say, ledger is not None, follower)
    )
    following = asyncio.create_task(follower.follow())
    serving = asyncio.create_task(server.serve())
    try:
        await asyncio.wait({loading, serving}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done() and loading.exception() is not None:
            server.should_exit = True
        await serving
    finally:
        following.cancel()
        if ledger is not None:
            await asyncio.to_thread(app.state.desk.lessons.close)
        if tuning is not None:
            await asyncio.to_thread(tuning.stop)
        if not loading.done():
            loading.cancel()
        await asyncio.gather(loading, following, return_exceptions=True)
    if not loading.cancelled():
        loading.result()


async def _load(
    models: list[Opened],
    registry: Registry,
    settings: Settings,
    server: Server,
    say: Callable[[str], None],
    has_pages: bool,
    follower: Follower,
) -> None:
    registry.loading = {opened.name for opened in models}
    for opened in models:
        responder = await asyncio.to_thread(open_model, opened)
        details = {"run": str(opened.run)} if opened.run else {}
        await registry.add(Served(opened.name, responder, opened.digest, details=details))
        follower.watch(opened)
        registry.loading.discard(opened.name)
        able = responder.capabilities
        note = f" ({able.note})" if able.note else ""
        window = f"window {able.window} tokens" if able.window else "window not told"
        say(f"{opened.name}: {able.engine} engine, {window}{note}")
    while not server.started:
        await asyncio.sleep(0.01)
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    port = server.servers[0].sockets[0].getsockname()[1]
    say(f"listening on http://{shown}:{port}/v1 (Ctrl-C ends)")
    if has_pages:
        say(f"chat in a browser: http://{shown}:{port}/")
