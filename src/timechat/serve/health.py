"""For supervisors: is the process alive, and may traffic come?"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from timechat.serve.errors import ApiError
from timechat.serve.gate import gate_of

router = APIRouter(tags=["health"])


@router.get("/health")
async def health() -> dict[str, str]:
    """The process answers. Needs no key, and tells nothing else."""
    return {"status": "ok"}


@router.get("/ready")
async def ready(request: Request) -> Response:
    """200 when every model is loaded and the server is not shutting down, else 503."""
    gate = gate_of(request)
    registry, mine = gate.registry, gate.registry.seen_by(gate.caller.project)
    models: dict[str, Any] = {model.name: model.responder.ready for model in mine}
    if not registry.ready:
        raise ApiError(503, f"not ready: {models or 'no model is loaded'}", retry_after_s=1.0)
    return JSONResponse({"status": "ready", "models": models})
