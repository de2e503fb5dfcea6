"""What training left on the disk, for the runs page: plan, curves, checks, report, watched answers.

Only the runs that are served here, and those that lie beside them, can be looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, Response

from timechat.serve.errors import ApiError
from timechat.serve.gate import gate_of
from timechat.serve.studio.desk import run_of
from timechat.serve.studio.earlier import kept_steps
from timechat.store.files import read_json, read_lines

router = APIRouter(tags=["studio"])

Point = TypeVar("Point")
MAX_POINTS = 400
# Watched answers shown of each question: enough to see it learn, few enough to read.
MAX_ANSWERS = 10
# The report brings its own style and drawings inline; it gets an origin of its own and no scripts.
REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@router.get("/studio/runs")
def list_runs(request: Request) -> dict[str, Any]:
    return {"runs": [_summary(run, name) for run, name in _runs(request)]}


@router.get("/studio/runs/{name}")
def one_run(name: str, request: Request) -> dict[str, Any]:
    run, served = _find(name, request)
    steps = list(_lines(run / "metrics.jsonl"))
    losses = [[row["step"], row["loss"]] for row in steps if "loss" in row]
    validations = [
        [row["step"], row["validation_loss"]] for row in steps if "validation_loss" in row
    ]
    return _summary(run, served) | {
        "loss": thinned(losses),
        "validation": thinned(validations),
        "plan": _json(run / "plan.json").get("numbers", {}),
        "report": _json(run / "report.json"),
        "watched": _watched(run),
    }


@router.get("/studio/runs/{name}/report")
def report(name: str, request: Request) -> Response:
    path = _find(name, request)[0] / "report.html"
    if not path.is_file():
        raise ApiError(404, f"{name} has no report yet")
    headers = {"Content-Security-Policy": REPORT_POLICY, "X-Content-Type-Options": "nosniff"}
    return FileResponse(path, media_type="text/html; charset=utf-8", headers=headers)


def thinned(points: list[Point], most: int = MAX_POINTS) -> list[Point]:
    """At most `most` of them, evenly, the last one always there."""
    stride = max(1, -(-len(points) // most))
    return points[::-1][::stride][::-1]


def _watched(run: Path) -> list[dict[str, Any]]:
    """The questions that are asked at every validation, each with its answers by step."""
    found: dict[str, dict[str, Any]] = {}
    for row in _lines(run / "samples.jsonl"):
        question = {"question": row["question"], "reference": row["reference"], "answers": []}
        known = found.setdefault(row["question"], question)
        known["answers"].append([row["step"], row["answer"]])
    return [one | {"answers": thinned(one["answers"], MAX_ANSWERS)} for one in found.values()]


def _runs(request: Request) -> Iterator[tuple[Path, str | None]]:
    """Every run to be seen by this caller, with the name it is served under, if it is."""
    gate = gate_of(request)
    served: dict[Path, str] = {}
    for model in gate.registry.seen_by(gate.caller.project):
        run = run_of(model)
        if run is not None and "@" not in model.name:
            served[run.resolve()] = model.name
    beside = {path for run in served for path in run.parent.iterdir() if _is_run(path)}
    for run in sorted(beside | set(served)):
        yield run, served.get(run)


def _is_run(folder: Path) -> bool:
    return (folder / "recipe.yaml").is_file() and (folder / "plan.json").is_file()


def _find(name: str, request: Request) -> tuple[Path, str | None]:
    found = next(((run, served) for run, served in _runs(request) if run.name == name), None)
    if found is None:
        raise ApiError(404, f"no run {name!r} here")
    return found


def _summary(run: Path, served: str | None) -> dict[str, Any]:
    report = _json(run / "report.json")
    return {
        "name": run.name,
        "served": served,
        "verdict": report.get("verdict"),
        "headline": report.get("headline"),
        "steps": kept_steps(run),
    }


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        yield from read_lines(path)
