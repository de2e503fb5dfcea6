"""Fine-tuning jobs in the terminal: a list, one job followed with its curve, and the levers.

It reads and writes the ledger that a server keeps; whether the server runs does not matter.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from rich.live import Live
from rich.table import Table
from rich.text import Text

from timechat.cli.display import console
from timechat.errors import LedgerError, nearest
from timechat.ledger.database import LEDGER_FILE, open_ledger
from timechat.ledger.jobs import Event, Job, Jobs
from timechat.ledger.keys import Key

BLOCKS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 60
LOOK_S = 1.0


def open_jobs(state: Path, ledger: str | None) -> Jobs:
    """The jobs of a server's folder. Raises LedgerError where there is none."""
    if ledger is None and not (state / LEDGER_FILE).is_file():
        raise LedgerError(f"{state} holds no jobs: name the folder of `timechat serve --state`")
    return Jobs(open_ledger(ledger or state / LEDGER_FILE))


def find_job(jobs: Jobs, name: str) -> Job:
    """The job of that id, or whose id begins so. Raises LedgerError with the nearest."""
    known = {job.id: job for job in jobs.list()}
    matching = [
        job
        for job in known.values()
        if job.id.removeprefix("ftjob-").startswith(name.removeprefix("ftjob-"))
    ]
    found = known.get(name) or (matching[0] if len(matching) == 1 else None)
    if found is None:
        raise LedgerError(f"no job {name!r}: {nearest(name, known) if known else 'there is none'}")
    return found


def show_jobs(found: Sequence[Job]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("job", "project", "status", "model", "created", "tuned model"):
        table.add_column(name, overflow="fold")
    for job in found:
        table.add_row(
            job.id,
            job.project,
            f"{job.status} (paused)" if job.is_paused and job.is_open else job.status,
            job.model,
            f"{datetime.fromtimestamp(job.created_ms / 1000):%Y-%m-%d %H:%M}",
            job.fine_tuned_model or (job.error or {}).get("message", "")[:80],
        )
    console.print(table)


def show_keys(found: Sequence[Key]) -> None:
    for key in found:
        state = "revoked" if key.revoked_ms is not None else "valid"
        when = f"{datetime.fromtimestamp(key.created_ms / 1000):%Y-%m-%d %H:%M}"
        console.print(f"{key.hint}…  {key.project}  {when}  {state}", markup=False)


def follow(jobs: Jobs, job: Job) -> Job:
    """Show what happens to a job until it ends; Ctrl-C stops looking, not the job."""
    after: str | None = None
    losses: list[float] = []
    with Live(Text(), console=console, transient=True, auto_refresh=False) as live:
        try:
            while True:
                job = jobs.get(job.id) or job
                while (page := jobs.events(job.id, after, 100, newest_first=False)) and page[0]:
                    for event in page[0]:
                        _show(event, losses)
                    after = page[0][-1].id
                if not job.is_open:
                    return job
                live.update(Text(f"{job.status} {draw_curve(losses)}"), refresh=True)
                time.sleep(LOOK_S)
        except KeyboardInterrupt:
            return job


def draw_curve(losses: Sequence[float], width: int = CURVE_WIDTH) -> str:
    """The losses as a line of blocks: each the mean of its stretch, between lowest and highest."""
    if len(losses) < 2:
        return ""
    stretches = min(width, len(losses))
    edges = [round(i * len(losses) / stretches) for i in range(stretches + 1)]
    means = [sum(losses[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    step = (high - low) / (len(BLOCKS) - 1) or 1.0
    curve = "".join(BLOCKS[round((mean - low) / step)] for mean in means)
    return f"loss {losses[0]:.3f} {curve} {losses[-1]:.3f}"


def _show(event: Event, losses: list[float]) -> None:
    loss = (event.data or {}).get("train_loss") if event.type == "metrics" else None
    if loss is not None:
        losses.append(float(loss))
        if console.is_terminal and "valid_loss" not in (event.data or {}):
            return  # the curve shows it
    when = f"{datetime.fromtimestamp(event.created_ms / 1000):%H:%M:%S}"
    console.print(f"{when} {event.message}", markup=False)
