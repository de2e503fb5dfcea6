"""`/v1/fine_tuning/jobs`: jobs as OpenAI's clients know them. What a job does is the worker's."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from timechat.errors import LedgerError, RecipeError
from timechat.ledger.files import Files
from timechat.ledger.jobs import Checkpoint, Event, Job, Jobs
from timechat.serve.errors import ApiError
from timechat.serve.files import list_row
from timechat.serve.gate import gate_of
from timechat.stages.jobs.job import check_hyperparameters

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])
Limit = Annotated[int, Query(ge=1, le=100)]
Text64 = Annotated[str, Field(max_length=64)]
Text512 = Annotated[str, Field(max_length=512)]
NOT_CONNECTED = Event(
    "integrations",
    "wandb is not connected here: every figure stands in this job's events and its result file",
    level="warn",
)
# A colon would tear the model's name apart.
Suffix = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]


class Supervised(BaseModel):
    model_config = ConfigDict(extra="forbid")

    hyperparameters: dict[str, Any] | None = None


class Method(BaseModel):
    """How to train; what is not built is refused by name when the job is made."""

    model_config = ConfigDict(extra="allow")

    type: str
    supervised: Supervised | None = None


class Wandb(BaseModel):
    model_config = ConfigDict(extra="forbid")

    project: str
    name: str | None = None
    entity: str | None = None
    tags: list[str] | None = None


class Integration(BaseModel):
    """What scripts ask to be connected. Nothing is, which an event says, so that they run on."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["wandb"]
    wandb: Wandb


class JobRequest(BaseModel):
    """The body of `POST /v1/fine_tuning/jobs`."""

    model_config = ConfigDict(extra="forbid")

    model: str
    training_file: str
    validation_file: str | None = None
    hyperparameters: dict[str, Any] | None = None
    method: Method | None = None
    suffix: Suffix | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    metadata: Annotated[dict[Text64, Text512], Field(max_length=16)] | None = None
    integrations: list[Integration] | None = None


@router.post("")
def create_job(body: JobRequest, request: Request) -> dict[str, Any]:
    """Queue a job; its rows are checked and its cost is planned before it starts."""
    jobs, project = _jobs(request)
    given = _hyperparameters(body)
    base = _base(request, body.model)
    _check_file(request, body.training_file, "training_file")
    if body.validation_file is not None:
        _check_file(request, body.validation_file, "validation_file")
    try:
        kept = check_hyperparameters(given)
    except RecipeError as error:
        raise ApiError(400, str(error), param="hyperparameters", code="invalid_value") from None
    job = jobs.create(
        project=project,
        model=body.model,
        base=base,
        training_file=body.training_file,
        validation_file=body.validation_file,
        suffix=body.suffix or "",
        seed=body.seed if body.seed is not None else secrets.randbelow(2**31),
        hyperparameters=kept,
        metadata=body.metadata,
        told=[NOT_CONNECTED] if body.integrations else [],
    )
    return job_row(job)


@router.get("")
def list_jobs(request: Request, after: str | None = None, limit: Limit = 20) -> dict[str, Any]:
    """The project's jobs, newest first; `metadata[key]=value` and `metadata=null` filter."""
    jobs, project = _jobs(request)
    wanted = _metadata(request)
    if wanted == {}:
        page = jobs.page(project, after, limit)
        if page is None:
            raise ApiError(400, f"no job {after!r} to go on after", param="after")
        return list_row([job_row(job) for job in page[0]], page[1])
    found = [job for job in jobs.list(project) if _matches(job, wanted)]
    if after is not None:
        place = next((i for i, job in enumerate(found) if job.id == after), None)
        if place is None:
            raise ApiError(400, f"no job {after!r} to go on after", param="after")
        found = found[place + 1 :]
    return list_row([job_row(job) for job in found[:limit]], len(found) > limit)


@router.get("/{job}")
def retrieve_job(job: str, request: Request) -> dict[str, Any]:
    return job_row(_job(request, job))


@router.post("/{job}/cancel")
def cancel_job(job: str, request: Request) -> dict[str, Any]:
    return _steer(request, job, "cancel")


@router.post("/{job}/pause")
def pause_job(job: str, request: Request) -> dict[str, Any]:
    """Let it wait; `status` is then `queued`, the only word for it that clients know."""
    return _steer(request, job, "pause")


@router.post("/{job}/resume")
def resume_job(job: str, request: Request) -> dict[str, Any]:
    return _steer(request, job, "resume")


@router.get("/{job}/events")
def list_events(
    job: str, request: Request, after: str | None = None, limit: Limit = 20
) -> dict[str, Any]:
    """What happened, newest first."""
    jobs, project = _jobs(request)
    page = jobs.events(job, after, limit, project=project)
    if page is None or not page[0]:
        _job(request, job)  # 404 where there is none
    if page is None:
        raise ApiError(400, f"no event {after!r} to go on after", param="after")
    return list_row([event_row(event) for event in page[0]], page[1])


@router.get("/{job}/checkpoints")
def list_checkpoints(
    job: str, request: Request, after: str | None = None, limit: Limit = 10
) -> dict[str, Any]:
    """Checkpoints that can be chatted with, newest first."""
    page = _jobs(request)[0].checkpoints(_job(request, job).id, after, limit)
    if page is None:
        raise ApiError(400, f"no checkpoint {after!r} to go on after", param="after")
    return list_row([checkpoint_row(job, one) for one in page[0]], page[1])


def job_row(job: Job) -> dict[str, Any]:
    def seconds(when_ms: int | None) -> int | None:
        return when_ms // 1000 if when_ms is not None else None

    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": job.created_ms // 1000,
        "error": job.error,
        "estimated_finish": seconds(job.finish_ms),
        "fine_tuned_model": job.fine_tuned_model,
        "finished_at": seconds(job.finished_ms),
        "hyperparameters": job.hyperparameters,
        "integrations": [],
        "metadata": job.metadata,
        "method": {
            "type": "supervised",
            "supervised": {"hyperparameters": job.hyperparameters},
        },
        "model": job.model,
        "organization_id": f"org-{job.project}",
        "plan": job.plan,
        "result_files": job.result_files,
        "seed": job.seed,
        "status": job.status,
        "trained_tokens": job.trained_tokens,
        "training_file": job.training_file,
        "user_provided_suffix": job.suffix or None,
        "validation_file": job.validation_file,
    }


def event_row(event: Event) -> dict[str, Any]:
    return {
        "id": event.id,
        "object": "fine_tuning.job.event",
        "created_at": event.created_ms // 1000,
        "level": event.level,
        "message": event.message,
        "type": event.type,
        "data": event.data,
    }


def checkpoint_row(job: str, found: Checkpoint) -> dict[str, Any]:
    return {
        "id": found.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": found.created_ms // 1000,
        "fine_tuned_model_checkpoint": found.model,
        "fine_tuning_job_id": job,
        "metrics": found.metrics,
        "step_number": found.step,
    }


def _jobs(request: Request) -> tuple[Jobs, str]:
    return request.app.state.jobs, gate_of(request).caller.project


def _job(request: Request, name: str) -> Job:
    jobs, project = _jobs(request)
    found = jobs.get(name, project)
    if found is None:
        raise ApiError(404, f"Could not find fine tune: {name}", param="fine_tune_id")
    return found


def _steer(request: Request, name: str, verb: str) -> dict[str, Any]:
    found = _job(request, name)
    try:
        return job_row(getattr(_jobs(request)[0], verb)(found.id))
    except LedgerError as error:
        raise ApiError(400, str(error), code="invalid_request") from None


def _hyperparameters(body: JobRequest) -> dict[str, Any]:
    if body.method is None:
        return body.hyperparameters or {}
    if body.method.type != "supervised":
        raise ApiError(
            400, f"method {body.method.type!r}: only 'supervised' is served", param="method"
        )
    inner = body.method.supervised.hyperparameters if body.method.supervised else None
    if inner and body.hyperparameters:
        raise ApiError(400, "hyperparameters stand in `method` already", param="hyperparameters")
    return inner or body.hyperparameters or {}


def _base(request: Request, model: str) -> str:
    """The folder of a model that the server was started with."""
    bases: dict[str, str] = request.app.state.bases
    if model not in bases:
        gate = gate_of(request)
        gate.registry.get(model, gate.caller.project)  # 404 with the nearest name
        raise ApiError(400, f"`{model}` is tuned already: start from its base", param="model")
    return bases[model]


def _check_file(request: Request, name: str, param: str) -> None:
    files: Files = request.app.state.files
    found = files.get(gate_of(request).caller.project, name)
    if found is None:
        raise ApiError(400, f"invalid {param}: {name} does not exist", param=param)
    if found.purpose != "fine-tune":
        raise ApiError(400, f"{name} has purpose {found.purpose!r}, not 'fine-tune'", param=param)


def _metadata(request: Request) -> dict[str, str] | None:
    """What `metadata[key]=value` asks for; None for `metadata=null`."""
    if request.query_params.get("metadata") == "null":
        return None
    return {
        key[len("metadata[") : -1]: value
        for key, value in request.query_params.multi_items()
        if key.startswith("metadata[") and key.endswith("]")
    }


def _matches(job: Job, wanted: dict[str, str] | None) -> bool:
    if wanted is None:
        return not job.metadata
    return all((job.metadata or {}).get(key) == value for key, value in wanted.items())
