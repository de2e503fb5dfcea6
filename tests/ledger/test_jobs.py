"""The queue of jobs: leased once, told once, steered clearly; the same on both databases."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import timechat.ledger.jobs as room
from timechat.errors import LedgerError
from timechat.ledger.database import Ledger
from timechat.ledger.jobs import Checkpoint, Event, Job, Jobs, LostLeaseError


def create(jobs: Jobs, project: str = "lab", **more: Any) -> Job:
    given: dict[str, Any] = {
        "project": project, "model": "base", "base": "/base", "training_file": "file-1",
        "validation_file": None, "suffix": "", "seed": 1, "hyperparameters": {}, "metadata": None,
    }  # fmt: skip
    return jobs.create(**{**given, **more})


def later(monkeypatch: pytest.MonkeyPatch, milliseconds: int) -> None:
    now = room.now_ms() + milliseconds
    monkeypatch.setattr(room, "now_ms", lambda: now)


def messages(jobs: Jobs, job: Job) -> list[str]:
    page = jobs.events(job.id, None, 100, newest_first=False)
    assert page is not None
    return [event.message for event in page[0]]


def test_a_job_is_leased_to_one_worker_until_the_lease_runs_out(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs(ledger)
    made = create(jobs)
    first = jobs.claim("one", None, 0)
    assert first is not None
    assert first.id == made.id
    assert jobs.claim("two", None, 0) is None
    later(monkeypatch, room.LEASE_MS + 1)
    assert jobs.claim("two", None, 0) is not None
    with pytest.raises(LostLeaseError), jobs.held(made.id, "one") as held:
        held.tell(Event("x", "from the grave"))
    assert "from the grave" not in messages(jobs, made)


def test_many_workers_at_once_never_share_a_job(ledger: Ledger) -> None:
    jobs = Jobs(ledger)
    for _ in range(12):
        create(jobs)
    taken: list[str] = []

    def work(name: str) -> None:
        while (job := jobs.claim(name, None, 0)) is not None:
            taken.append(job.id)

    threads = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) == 12


def test_jobs_leave_the_queue_in_the_order_in_which_they_came(ledger: Ledger) -> None:
    jobs = Jobs(ledger)
    made = [create(jobs).id for _ in range(3)]
    claimed = [jobs.claim("w", None, 0) for _ in range(3)]
    assert [job.id for job in claimed if job is not None] == made


def test_memory_bounds_what_runs_at_once_but_never_starves_a_lone_job(ledger: Ledger) -> None:
    jobs = Jobs(ledger)
    for size in (60, 60, 30):
        create(jobs, plan={"memory_bytes": size})
    claimed = [jobs.claim("w", 100, n) for n in range(3)]
    sizes = [job.plan["memory_bytes"] for job in claimed if job is not None and job.plan]
    assert sizes == [60, 30]
    other = Jobs(ledger)
    create(other, plan={"memory_bytes": 1000})
    for job in claimed:
        if job is not None:
            other.cancel(job.id)
    alone = other.claim("w", 10, 0)
    assert alone is not None


def test_an_event_with_a_key_is_told_once_however_often_it_is_tried(ledger: Ledger) -> None:
    jobs = Jobs(ledger)
    made = create(jobs)
    jobs.claim("w", None, 0)
    for _ in range(3):
        with jobs.held(made.id, "w") as held:
            held.tell(Event("step-1", "Step 1"))
            held.add_checkpoint("lab", Checkpoint(1, "ft:x:ckpt-step-1", {"step": 1.0}, "/c"))
    assert messages(jobs, made).count("Step 1") == 1
    page = jobs.checkpoints(made.id, None, 10)
    assert page is not None
    assert [one.step for one in page[0]] == [1]
    assert jobs.model("ft:x:ckpt-step-1", "lab") is not None
    assert jobs.model("ft:x:ckpt-step-1", "other") is None
    assert jobs.models("lab") == []


def test_pages_meet_without_gap_or_overlap(ledger: Ledger) -> None:
    jobs = Jobs(ledger)
    made = create(jobs)
    jobs.claim("w", None, 0)
    with jobs.held(made.id, "w") as held:
        for number in range(7):
            held.tell(Event(f"k{number}", str(number)))
    found: list[str] = []
    after, more = None, True
    while more:
        page = jobs.events(made.id, after, 2)
        assert page is not None
        found += [event.message for event in page[0]]
        after, more = page[0][-1].id, page[1]
    assert found == messages(jobs, made)[::-1]
    assert jobs.events(made.id, "ftevent-none", 2) is None


def test_a_cancelled_job_is_taken_from_its_worker_and_stays_cancelled(ledger: Ledger) -> None:
    jobs = Jobs(ledger)
    made = create(jobs)
    jobs.claim("w", None, 0)
    assert jobs.cancel(made.id).status == "cancelled"
    with pytest.raises(LostLeaseError), jobs.held(made.id, "w"):
        pass
    assert jobs.claim("w", None, 0) is None
    for verb in (jobs.cancel, jobs.pause, jobs.resume):
        with pytest.raises(LedgerError, match="cancelled"):
            verb(made.id)


def test_a_paused_job_waits_until_it_is_resumed(ledger: Ledger) -> None:
    jobs = Jobs(ledger)
    made = create(jobs)
    with pytest.raises(LedgerError, match="not paused"):
        jobs.resume(made.id)
    jobs.claim("w", None, 0)
    with jobs.held(made.id, "w") as held:
        held.change(status="running")
    assert jobs.pause(made.id).status == "queued"
    assert jobs.claim("w", None, 0) is None
    with pytest.raises(LedgerError, match="paused"):
        jobs.pause(made.id)
    jobs.resume(made.id)
    assert jobs.claim("w", None, 0) is not None
    assert messages(jobs, made)[-2:] == ["The job was paused", "The job was resumed"]


def test_a_project_sees_nothing_of_another(ledger: Ledger) -> None:
    jobs = Jobs(ledger)
    made = create(jobs, "one")
    assert jobs.get(made.id, "one") is not None
    assert jobs.get(made.id, "two") is None
    assert jobs.list("two") == []
