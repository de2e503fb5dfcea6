"""The application: one factory, to which other rooms add their routers.

Routes find what they need in `request.app.state` (`registry`, `settings`, `keys`) and the caller
in `request.state.caller`; the guard has admitted them before. Opening models is
`stages.serving.serve`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.middleware import Middleware

from timechat.serve import chat, completions, health, metrics, models
from timechat.serve.conversations import Conversations
from timechat.serve.errors import handle_errors
from timechat.serve.follow import Follower
from timechat.serve.guard import Guard
from timechat.serve.keys import Keys
from timechat.serve.registry import Registry
from timechat.serve.settings import Settings

_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": text}
    for status, text in {
        400: "The request cannot be understood or done; `error.param` names the part.",
        401: "No valid API key.",
        403: "Host or Origin is not one of this server's.",
        404: "No such model or path.",
        408: "The body came too slowly.",
        413: "The body is too large.",
        415: "The body is compressed, or not JSON.",
        429: "All places are taken; `Retry-After` says when to come again.",
        500: "A fault of the server.",
        503: "The engine is starting again, or the server is shutting down.",
    }.items()
}


def create_app(
    registry: Registry,
    settings: Settings | None = None,
    keys: Keys | None = None,
    routers: Iterable[APIRouter] = (),
) -> FastAPI:
    """The API over `registry`. Raises RecipeError for a server open to other machines.

    The registry's models are closed when the app shuts down.
    """
    settings = settings or Settings()
    keys = keys if keys is not None else Keys()
    settings.check(len(keys))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        yield
        await registry.close(0.0)

    app = FastAPI(
        title="TimeChat",
        version=version("timechat"),
        summary="Your tuned models behind OpenAI's API.",
        lifespan=lifespan,
        middleware=[Middleware(Guard, settings=settings, keys=keys)],
        responses=_REFUSALS,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.registry = registry
    app.state.follower = Follower(registry)
    app.state.settings = settings
    app.state.keys = keys
    app.state.running = Counter()
    app.state.metrics = metrics.Metrics()
    app.state.conversations = Conversations()
    handle_errors(app)
    own = (chat.router, completions.router, models.router, health.router, metrics.router)
    for router in (*own, *routers):
        app.include_router(router)
    return app
