"""The queue of jobs: leased once, told once, steered clearly; the same on both databases."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any

import pytest

from timechat.errors import LedgerError
from timechat.ledger import leases as room
from timechat.ledger.database import Ledger
from timechat.ledger.jobs import Checkpoint, Event, Job, Jobs
from timechat.ledger.leases import Held, Leases, LostLeaseError
from timechat.ledger.models import Models


def create(jobs: Jobs, project: str = "lab", **more: Any) -> Job:
    given: dict[str, Any] = {
        "project": project, "model": "base", "base": "/base", "training_file": "file-1",
        "validation_file": None, "suffix": "", "seed": 1, "hyperparameters": {}, "metadata": None,
    }  # fmt: skip
    return jobs.create(**{**given, **more})


def claim(jobs: Jobs, worker: str = "w", **more: Any) -> Job | None:
    given: dict[str, Any] = {"is_planned": False, **more}
    return Leases(jobs.ledger).claim(worker, **given)


def held(jobs: Jobs, job: Job, worker: str = "w") -> AbstractContextManager[Held]:
    return Leases(jobs.ledger).held(job.id, worker)


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
    first = claim(jobs, "one")
    assert first is not None
    assert first.id == made.id
    assert claim(jobs, "two") is None
    later(monkeypatch, room.LEASE_MS + 1)
    assert claim(jobs, "two") is not None
    with pytest.raises(LostLeaseError), held(jobs, made, "one") as mine:
        mine.tell(Event("x", "from the grave"))
    assert "from the grave" not in messages(jobs, made)


def test_many_workers_at_once_never_share_a_job(ledger: Ledger) -> None:
    jobs = Jobs(ledger)
    for _ in range(12):
        create(jobs)
    taken: list[str] = []

    def work(name: str) -> None:
        mine: list[str] = []
        while (job := claim(jobs, name, running=mine)) is not None:
            mine.append(job.id)
        taken.extend(mine)

    threads = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) == 12


def test_jobs_leave_the_queue_in_the_order_in_which_they_came(ledger: Ledger) -> None:
    jobs = Jobs(ledger)
    made = [create(jobs).id for _ in range(3)]
    claimed: list[Job] = []
    while (job := claim(jobs, running=[job.id for job in claimed])) is not None:
        claimed.append(job)
    assert [job.id for job in claimed] == made


def test_memory_bounds_what_runs_at_once_but_never_starves_a_lone_job(ledger: Ledger) -> None:
    jobs = Jobs(ledger)
    for size in (60, 60, 30):
        create(jobs, plan={"memory_bytes": size})
    claimed = [claim(jobs, name, is_planned=True, memory_bytes=100) for name in "abc"]
    sizes = [job.plan["memory_bytes"] for job in claimed if job is not None and job.plan]
    assert sizes == [60, 30]
    other = Jobs(ledger)
    create(other, plan={"memory_bytes": 1000})
    for job in claimed:
        if job is not None:
            other.cancel(job.id)
    alone = claim(other, is_planned=True, memory_bytes=10)
    assert alone is not None


def test_an_event_with_a_key_is_told_once_however_often_it_is_tried(ledger: Ledger) -> None:
    jobs = Jobs(ledger)
    made = create(jobs)
    claim(jobs)
    for _ in range(3):
        with held(jobs, made) as mine:
            mine.tell(Event("step-1", "Step 1"))
            mine.add_checkpoint("lab", Checkpoint(1, "ft:x:ckpt-step-1", {"step": 1.0}, "/c"))
    assert messages(jobs, made).count("Step 1") == 1
    page = jobs.checkpoints(made.id, None, 10)
    assert page is not None
    assert [one.step for one in page[0]] == [1]
    assert Models(ledger).get("ft:x:ckpt-step-1", "lab") is not None
    assert Models(ledger).get("ft:x:ckpt-step-1", "other") is None
    assert Models(ledger).list("lab") == []


def test_pages_meet_without_gap_or_overlap(ledger: Ledger) -> None:
    jobs = Jobs(ledger)
    made = create(jobs)
    claim(jobs)
    with held(jobs, made) as mine:
        for number in range(7):
            mine.tell(Event(f"k{number}", str(number)))
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
    claim(jobs)
    assert jobs.cancel(made.id).status == "cancelled"
    with pytest.raises(LostLeaseError), held(jobs, made):
        pass
    assert claim(jobs) is None
    for verb in (jobs.cancel, jobs.pause, jobs.resume):
        with pytest.raises(LedgerError, match="cancelled"):
            verb(made.id)


def test_a_paused_job_waits_until_it_is_resumed(ledger: Ledger) -> None:
    jobs = Jobs(ledger)
    made = create(jobs)
    with pytest.raises(LedgerError, match="not paused"):
        jobs.resume(made.id)
    claim(jobs)
    with held(jobs, made) as mine:
        mine.change(status="running")
    assert jobs.pause(made.id).status == "queued"
    assert claim(jobs) is None
    with pytest.raises(LedgerError, match="paused"):
        jobs.pause(made.id)
    jobs.resume(made.id)
    assert claim(jobs) is not None
    assert messages(jobs, made)[-2:] == ["The job was paused", "The job was resumed"]


def test_a_project_sees_nothing_of_another(ledger: Ledger) -> None:
    jobs = Jobs(ledger)
    made = create(jobs, "one")
    assert jobs.get(made.id, "one") is not None
    assert jobs.get(made.id, "two") is None
    assert jobs.list("two") == []


def test_a_claim_whose_answer_got_lost_is_given_again(ledger: Ledger) -> None:
    jobs = Jobs(ledger)
    made = [create(jobs).id for _ in range(2)]
    for _ in range(2):  # the second call knows nothing of the first
        job = claim(jobs)
        assert job is not None
        assert job.id == made[0]
    job = claim(jobs, running=[made[0]])
    assert job is not None
    assert job.id == made[1]


def test_what_a_dead_worker_held_is_free_at_once_when_somebody_says_so(ledger: Ledger) -> None:
    jobs = Jobs(ledger)
    made = create(jobs)
    claim(jobs, "dead")
    assert claim(jobs, "alive") is None
    Leases(ledger).release(["dead"])
    assert claim(jobs, "alive") is not None
    with pytest.raises(LostLeaseError), held(jobs, made, "dead"):
        pass


def test_planning_and_training_are_leased_apart(ledger: Ledger) -> None:
    jobs = Jobs(ledger)
    planned, fresh = create(jobs, plan={"memory_bytes": 1}), create(jobs)
    for is_planned, expected in ((False, fresh), (True, planned)):
        job = claim(jobs, is_planned=is_planned)
        assert job is not None
        assert job.id == expected.id


def test_jobs_list_in_pages_of_their_project(ledger: Ledger) -> None:
    jobs = Jobs(ledger)
    made = [create(jobs).id for _ in range(3)]
    other = create(jobs, "other")
    first = jobs.page("lab", None, 2)
    assert first is not None
    assert ([job.id for job in first[0]], first[1]) == (made[:0:-1], True)
    rest = jobs.page("lab", made[1], 2)
    assert rest is not None
    assert ([job.id for job in rest[0]], rest[1]) == ([made[0]], False)
    assert jobs.page("lab", other.id, 2) is None
