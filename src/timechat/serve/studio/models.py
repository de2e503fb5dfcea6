"""Which models can be talked to, and with a run, which of its checkpoints."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field

from timechat.serve.errors import ApiError
from timechat.serve.gate import gate_of
from timechat.serve.studio.desk import Part, desk_of, run_of
from timechat.serve.studio.earlier import kept_steps

router = APIRouter(tags=["studio"])


class Step(Part):
    model: str
    step: Annotated[int, Field(ge=0)]


@router.get("/studio/models")
def list_models(request: Request) -> dict[str, Any]:
    """Every model that the caller may use; a run's with the steps of its checkpoints."""
    gate = gate_of(request)
    earlier = desk_of(request).earlier
    rows: list[dict[str, Any]] = []
    for model in gate.registry.seen_by(gate.caller.project):
        if model.name not in earlier:
            run = run_of(model)
            rows.append({"name": model.name, "steps": kept_steps(run) if run else []})
    if gate.registry.shelf is not None:  # tuned models, loaded when they are asked
        known = {row["name"] for row in rows}
        waiting = (row["id"] for row in gate.registry.shelf.rows(gate.caller.project))
        rows += [{"name": name, "steps": []} for name in waiting if name not in known]
    return {"models": rows}


@router.post("/studio/models")
async def open_step(body: Step, request: Request) -> dict[str, str]:
    """Load a run as it was at a step, if it is not yet; returns the name it answers to."""
    model = await gate_of(request).find(body.model)
    run = run_of(model)
    if run is None:
        raise ApiError(400, f"{body.model} is no run: it has no checkpoints", param="model")
    return {"name": await desk_of(request).earlier.load(model, run, body.step)}
