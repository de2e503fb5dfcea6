"""Everything that the OpenAPI schema allows, and what it does not: no request finds a fault."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from starlette.types import Receive, Scope, Send

from serve.conftest import build_site, says
from timechat.engine.fake import FakeEngine
from timechat.serve.settings import Settings

schemathesis = pytest.importorskip("schemathesis")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")
pytestmark = pytest.mark.slow

SITE = build_site(FakeEngine(says("ok")), Settings(hosts=("testserver",)))
asyncio.run(SITE.open())


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """The site, whose models stay open from one request to the next."""
    if scope["type"] != "lifespan":
        await SITE.app(scope, receive, send)
        return
    for step in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{step}.complete"})


SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", app)


@SCHEMA.hook
def map_body(_: Any, body: Any) -> Any:
    """Ask for the model that is there: an unknown one is refused before anything else happens."""
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        known = 1 <= len(body["model"]) <= 256
        return {**body, "model": "tiny"} if known else body
    return body


@SCHEMA.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_request_finds_a_fault(case: Any) -> None:
    # Rules between two fields (`stream_options` needs `stream`) are not in the schema.
    case.call_and_validate(excluded_checks=[checks.positive_data_acceptance])


def test_the_probes_reached_the_engine() -> None:
    assert SITE.engine.requests
