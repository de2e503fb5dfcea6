"""`/v1/models`: what can be asked."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from timechat.serve.gate import gate_of
from timechat.serve.registry import Served

router = APIRouter(tags=["models"])


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """Every model that this caller may ask."""
    gate = gate_of(request)
    rows = [model_row(model) for model in gate.registry.seen_by(gate.caller.project)]
    if gate.registry.shelf is not None:
        shelved = await asyncio.to_thread(gate.registry.shelf.rows, gate.caller.project)
        rows = [row for row in rows if not gate.registry.shelf.holds(row["id"])] + shelved
    return {"object": "list", "data": rows}


@router.get("/v1/models/{name:path}")
async def retrieve_model(name: str, request: Request) -> dict[str, Any]:
    """One model, with its version's digest and what its engine can do."""
    gate = gate_of(request)
    if gate.registry.shelf is not None:
        found = await asyncio.to_thread(gate.registry.shelf.row, name, gate.caller.project)
        if found is not None:
            return found
    return model_row(gate.registry.get(name, gate.caller.project))


def model_row(model: Served) -> dict[str, Any]:
    able = model.responder.capabilities
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "timechat",
        **({"digest": model.digest} if model.digest else {}),
        "engine": able.engine,
        **({"context_length": able.window} if able.window else {}),
        **({"note": able.note} if able.note else {}),
        **model.details,
    }
