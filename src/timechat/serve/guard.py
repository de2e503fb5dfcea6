"""The door: every request passes here before any route sees it, so no route can forget to ask.

In order: Host (a rebound name must not reach a loopback server), Origin (another site's page must
not act here), the key, how often it asks, the size of the body. A request id goes out with every
answer. Written on plain ASGI, so that it holds for streams and websockets alike.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import uuid
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from timechat.serve.errors import ApiError
from timechat.serve.keys import Caller, Keys, credential
from timechat.serve.rate import Rate
from timechat.serve.settings import Settings, is_loopback
from timechat.serve.studio.sign_in import PATH as SIGN_IN
from timechat.serve.studio.sign_in import form_response

# Answers without a key: a supervisor needs none, and signing in checks the key it is given.
PUBLIC = frozenset({"/health", SIGN_IN})
_PREFLIGHT = (b"access-control-request-method",)


class Guard:
    """Wraps the app. `scope["state"]` gets `caller` and `request_id`."""

    def __init__(self, app: ASGIApp, settings: Settings, keys: Keys) -> None:
        self.app = app
        self.settings = settings
        self.keys = keys
        self.rate = Rate(settings.limits.requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = _request_id(headers)
        origin = headers.get(b"origin", b"").decode("latin-1")
        cors = self._cors(origin)

        async def answer(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                extra = [(b"x-request-id", request_id.encode()), *cors]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        try:
            if scope["type"] == "http" and self._is_preflight(scope, headers, origin):
                await _preflight(headers, answer)
                return
            caller = self._admit(scope, headers, origin)
            receive = self._limited(scope, headers, receive)
        except ApiError as error:
            await _refuse(error, scope, receive, answer)
            return
        state: dict[str, Any] = scope.setdefault("state", {})
        state["caller"] = caller
        state["request_id"] = request_id
        await self.app(scope, receive, answer)

    def _admit(self, scope: Scope, headers: dict[bytes, bytes], origin: str) -> Caller:
        host = headers.get(b"host", b"").decode("latin-1")
        if not self._knows(host):
            raise ApiError(
                403, f"this server is not called {host!r}: name it with --allow-host", code="host"
            )
        if origin and origin not in self.settings.origins and not _same(origin, host, scope):
            raise ApiError(403, f"pages of {origin!r} may not call this server", code="origin")
        if scope["path"] in PUBLIC:
            return Caller()
        caller = self.keys.find(credential(headers))
        if caller is None:
            raise ApiError(
                401,
                "a valid API key is needed: send it as `Authorization: Bearer KEY`",
                code="invalid_api_key",
            )
        # What the pages and supervisors look up is not counted.
        if scope["path"].startswith("/v1/") and (wait_s := self.rate.take(caller)):
            raise ApiError(
                429,
                f"a key may send {self.rate.per_minute} requests a minute",
                code="rate_limit_exceeded",
                retry_after_s=wait_s,
            )
        return caller

    def _knows(self, host: str) -> bool:
        """Whether Host names this server. Beyond loopback an address is fine (only names can be
        rebound), and so is the machine's own name."""
        name = _host_name(host)
        if name is None:
            return False
        if name in self.settings.hosts or name == self.settings.host:
            return True
        if self.settings.is_loopback:
            return is_loopback(name)
        return _is_address(name) or is_loopback(name) or name == socket.gethostname().lower()

    def _limited(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        """`receive` that ends with 413 where the body outgrows its bound, with 408 where it comes
        a drop at a time; only waiting for the client counts."""
        if scope["type"] != "http":
            return receive
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise ApiError(415, "compressed bodies are not taken")
        bound = self.settings.limits.body_limit(scope["path"])
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            raise ApiError(400, "Content-Length is not a number")
        too_large = ApiError(413, f"the body is larger than {bound} bytes", code="body_too_large")
        if int(length) > bound:
            raise too_large
        limits, loop = self.settings.limits, asyncio.get_running_loop()
        taken, waited, whole = 0, 0.0, False

        async def counted() -> Message:
            nonlocal taken, waited, whole
            if whole:
                return await receive()  # waits for the client to leave
            begun = loop.time()
            patience = limits.body_s + taken / limits.body_rate - waited
            try:
                async with asyncio.timeout(patience):
                    message = await receive()
            except TimeoutError:
                # The one exception that the framework passes on from the middle of a body.
                raise HTTPException(408, "the body came too slowly") from None
            waited += loop.time() - begun
            taken += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if taken > bound:
                raise HTTPException(413, str(too_large))
            return message

        return counted

    def _cors(self, origin: str) -> list[tuple[bytes, bytes]]:
        if origin and origin in self.settings.origins:
            return [
                (b"access-control-allow-origin", origin.encode("latin-1")),
                (b"vary", b"Origin"),
            ]
        return []

    def _is_preflight(self, scope: Scope, headers: dict[bytes, bytes], origin: str) -> bool:
        asked = scope["method"] == "OPTIONS" and all(name in headers for name in _PREFLIGHT)
        host = headers.get(b"host", b"").decode("latin-1")
        return asked and origin in self.settings.origins and self._knows(host)


async def _preflight(headers: dict[bytes, bytes], send: Send) -> None:
    asked = headers.get(b"access-control-request-headers", b"")
    allowed = [
        (b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS"),
        (b"access-control-allow-headers", asked),
        (b"access-control-max-age", b"600"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": allowed})
    await send({"type": "http.response.body", "body": b""})


async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": str(error)[:120]})
        return
    if error.status == 401 and _wants_page(scope):
        await form_response()(scope, receive, send)
        return
    await error.response(scope, receive, send)


def _wants_page(scope: Scope) -> bool:
    """Whether a browser asks for something to look at."""
    accept = dict(scope["headers"]).get(b"accept", b"")
    return scope["method"] == "GET" and b"text/html" in accept


def _request_id(headers: dict[bytes, bytes]) -> str:
    """The client's own id where it is a sane one, else a new one."""
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    sane = 0 < len(given) <= 128 and all(c.isascii() and (c.isalnum() or c in "-_.") for c in given)
    return given if sane else f"req_{uuid.uuid4().hex}"


def _host_name(host: str) -> str | None:
    """The name in a Host header without its port; None where it is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return None
    if parts.path or parts.query or parts.fragment or parts.username is not None:
        return None
    return parts.hostname


def _same(origin: str, host: str, scope: Scope) -> bool:
    """Whether a page of `origin` was served by this very server."""
    scheme = {"ws": "http", "wss": "https"}.get(scope["scheme"], scope["scheme"])
    return origin.lower() == f"{scheme}://{host}".lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
