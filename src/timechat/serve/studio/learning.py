"""The page's part of `learn`: begin and stop a lesson, look at it, take a version, go back."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from timechat.serve.errors import ApiError
from timechat.serve.follow import Follower
from timechat.serve.gate import gate_of
from timechat.serve.studio.desk import Part, desk_of, run_of
from timechat.stages.learning.corrections import gather
from timechat.stages.runs.versions import (
    Version,
    find_offered,
    go_back,
    in_use,
    put_back,
    take_offered,
    version_in_use,
    versions,
)

router = APIRouter(tags=["studio"])

MAX_VERSIONS = 20


class Step(Part):
    model: Annotated[str, Field(max_length=500)]
    action: Literal["start", "stop", "switch", "back"]
    seed: Annotated[int, Field(ge=0, le=2**31)] = 0


@router.get("/studio/learn")
async def look(model: str, request: Request) -> dict[str, Any]:
    """What there is to learn, what is being learned, and the versions there are."""
    run = await _run(model, request)
    return await asyncio.to_thread(_told, run, request)


@router.post("/studio/learn")
async def act(body: Step, request: Request) -> dict[str, Any]:
    """One step of the story; answers with what `look` then says.

    `switch` and `back` return once the other version answers.
    """
    run = await _run(body.model, request)
    lessons = desk_of(request).lessons
    if body.action == "start":
        await asyncio.to_thread(lessons.start, run, body.seed)
    elif body.action == "stop":
        lessons.stop(run)
    else:
        before = in_use(run)
        await asyncio.to_thread(take_offered if body.action == "switch" else go_back, run)
        follower: Follower = request.app.state.follower
        if not await follower.look(run):
            await asyncio.to_thread(put_back, run, before)
            raise ApiError(500, f"{body.model} answers as before: the version cannot be loaded")
    return await asyncio.to_thread(_told, run, request)


async def _run(model: str, request: Request) -> Path:
    served = await gate_of(request).find(model)
    run = run_of(served)
    if run is None or "@" in served.name:
        raise ApiError(400, f"{model} is no run that could learn", param="model")
    return run.resolve()


def _told(run: Path, request: Request) -> dict[str, Any]:
    desk = desk_of(request)
    state = desk.lessons.state(run)
    using, offered = version_in_use(run), find_offered(run)
    return {
        "run": run.name,
        "state": asdict(state),
        "corrections": len(gather(desk.queue_at(run)).corrections),
        "in_use": using.number if using else None,
        "offered": offered.number if offered else None,
        "versions": [_shown(v) for v in versions(run)[-MAX_VERSIONS:]],
    }


def _shown(version: Version) -> dict[str, Any]:
    names = ("number", "decision", "reasons", "sets", "samples", "seconds", "made")
    return {name: version.content[name] for name in names if name in version.content}
