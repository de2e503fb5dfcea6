"""SIGKILL to server, trainer and database over a queue of jobs: each ends once, in order, whole.

Everything is real but the answering engine: the HTTP server, its worker, tiny training runs. Only
the minutes of importing are saved, by forking (forge.py).
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import httpx
import pytest
from databases import Cluster, find_binaries
from harness import write_recipe
from openai import OpenAI
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from timechat.ledger.database import Ledger, open_ledger
from timechat.ledger.files import open_files
from timechat.ledger.jobs import Event, Job, Jobs
from timechat.ledger.tables import job_events

pytestmark = [pytest.mark.slow, pytest.mark.faults]
KILLS = 50
OPEN_AT_ONCE = 3


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """The socket of a process that forks servers and trainers."""
    path = str(tmp_path_factory.mktemp("forge") / "socket")
    here = Path(__file__).parent
    found = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(found), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(here / "forge.py"), path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    yield path
    process.stdin.close()
    process.wait(30)
    process.stdout.close()


class Scene:
    """A server that is killed and started again, and what its clients and its ledger know."""

    def __init__(self, forge: str, folder: Path, url: str, cluster: Cluster | None) -> None:
        self.forge = forge
        self.state = folder / "state"
        self.state.mkdir()
        self.url = url
        self.cluster = cluster
        # The recipe's files are what is wanted here: a tiny base, and rows for it.
        write_recipe(folder)
        self.rows, self.base = folder / "rows.jsonl", folder / "base"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.pid = 0

    def start(self) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self.forge)
            ask = {"serve": [self.url, str(self.state), str(self.base), self.port]}
            connection.send(json.dumps(ask).encode())
            self.pid = int(connection.recv(100))
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{self.port}/health")
                return
            except httpx.TransportError:
                assert time.monotonic() < deadline, "the server did not come up"
                time.sleep(0.05)

    def client(self) -> OpenAI:
        address = f"http://127.0.0.1:{self.port}/v1"
        return OpenAI(base_url=address, api_key="key-a", max_retries=8)

    def submit(self, client: OpenAI, file: str) -> str:
        parameters: dict[str, Any] = {
            "n_epochs": 2, "batch_size": 8, "adapt.rank": 2, "adapt.strength": 1.0,
            "train.learning_rate": 5e-3, "train.validations": 3, "train.checkpoint_every": 2,
            "evaluate.max_new_tokens": 4, "evaluate.max_questions": 6,
        }  # fmt: skip
        made = client.fine_tuning.jobs.create(
            model="tiny", training_file=file, seed=3, hyperparameters=parameters  # type: ignore[arg-type]
        )  # fmt: skip
        return made.id

    def kill_server(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        while Path(f"/proc/{self.pid}").exists():  # and with it the port that it holds
            time.sleep(0.02)
        self.start()

    def kill_trainer(self) -> None:
        """The youngest child of a job that still runs, if there is any."""
        for named in sorted(self.state.glob("jobs/*/child.pid"), reverse=True):
            pid = int(named.read_text() or 0)
            command = Path(f"/proc/{pid}/cmdline")
            if pid and command.exists() and named.parent.name.encode() in command.read_bytes():
                os.kill(pid, signal.SIGKILL)
                return

    def kill_database(self) -> None:
        assert self.cluster is not None
        self.cluster.kill_nine()
        time.sleep(0.3)
        self.cluster.start()


def tell(ledger: Ledger, job: str) -> list[Event]:
    page = Jobs(ledger).events(job, None, 1000, newest_first=False)
    assert page is not None
    return list(page[0])


def patiently(ask: Callable[[], Any]) -> Any:
    """What `ask` answers, once the database is there again."""
    for _ in range(200):
        try:
            return ask()
        except SQLAlchemyError:
            time.sleep(0.1)
    return ask()


def let_happen(ledger: Ledger, count: int) -> None:
    """Wait until so many more events are told, on however slow a machine, or long enough."""

    def told() -> int:
        with ledger.read() as connection:
            return int(connection.scalar(select(func.count()).select_from(job_events)) or 0)

    enough, deadline = patiently(told) + count, time.monotonic() + 8
    while patiently(told) < enough and time.monotonic() < deadline:
        time.sleep(0.05)


def check_story(job: Job, told: list[Event]) -> None:
    """Everything once and in order, but for what tells of the kills themselves."""
    lines = [
        event.message
        for event in told
        if not event.message.startswith(("Continuing from", "Training was killed"))
    ]
    steps = (job.plan or {})["steps"]
    assert lines[:5] == [
        f"Created fine-tuning job: {job.id}",
        f"Validating training file: {job.training_file}",
        "Files validated, moving job to queued state",
        lines[3],
        "Fine-tuning job started",
    ]
    assert lines[3].startswith("Plan: ")
    middle, last = lines[5:-3], lines[-3:]
    told_steps = [int(line.split()[1].partition("/")[0]) for line in middle if line[:4] == "Step"]
    assert told_steps == list(range(1, steps + 1))
    saved = [int(line.split()[4].rstrip(":")) for line in middle if "created at" in line]
    assert saved == sorted(set(saved))
    assert saved[-1] == steps
    for step in saved:  # a save is finished beside the next steps, so it is told after its own
        place = next(i for i, line in enumerate(middle) if f"at step {step}:" in line)
        assert any(line.startswith(f"Step {step}/") for line in middle[:place])
    assert last[1:] == [
        f"New fine-tuned model created: {job.fine_tuned_model}",
        "The job has successfully completed",
    ]


@pytest.fixture
def scene(
    request: pytest.FixtureRequest, forge: str, tmp_path: Path
) -> Generator[Scene]:  # fmt: skip
    cluster = None
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    if request.param == "postgresql":
        binaries = find_binaries()
        if binaries is None:
            pytest.skip("no PostgreSQL on this machine (apt-get install postgresql)")
        cluster = Cluster(binaries)
        url = cluster.database()
    made = Scene(forge, tmp_path, url, cluster)
    made.start()
    yield made
    os.kill(made.pid, signal.SIGKILL)
    if cluster is not None:
        cluster.remove()


@pytest.mark.parametrize("scene", ["sqlite", "postgresql"], indirect=True)
def test_fifty_kills_over_a_queue_lose_and_double_nothing(scene: Scene) -> None:
    chance = random.Random(9)
    ledger = open_ledger(scene.url)
    jobs, made = Jobs(ledger), list[str]()
    blows: list[Callable[[], None]] = [scene.kill_server, scene.kill_trainer]
    if scene.cluster is not None:
        blows.append(scene.kill_database)
    with scene.client() as client:
        file = client.files.create(file=scene.rows, purpose="fine-tune").id
        for count in range(KILLS):
            while patiently(lambda: sum(job.is_open for job in jobs.list())) < OPEN_AT_ONCE:
                made.append(scene.submit(client, file))
            let_happen(ledger, chance.randrange(10))
            time.sleep(chance.uniform(0, 0.5))
            blow = chance.choice(blows)
            print(f"{count + 1}: {blow.__name__} after {len(made)} jobs", file=sys.stderr)
            blow()
        deadline = time.monotonic() + 900
        while patiently(lambda: any(job.is_open for job in jobs.list())):
            assert time.monotonic() < deadline, [tell(ledger, job)[-1] for job in made]
            time.sleep(0.2)
        done = list(reversed(jobs.list()))
        # A retried request whose answer was lost may have made a job that nobody knows of.
        assert set(made) <= {job.id for job in done}
        assert {job.status for job in done} == {"succeeded"}, [
            (job.id, job.error) for job in done if job.status != "succeeded"
        ]
        ends = [job.finished_ms or 0 for job in done]
        assert ends == sorted(ends), "the jobs ended in another order than they came"
        curves, known = set[bytes](), set[str]()
        for job in done:
            check_story(job, tell(ledger, job.id))
            assert len(job.result_files) == 2
            curve, report = (client.files.content(name).read() for name in job.result_files)
            curves.add(curve)
            assert json.loads(report)["checks"]
            known |= set(job.result_files)
        # However it was interrupted, each run took the same steps to the same figures.
        assert len(curves) == 1
        assert len(known) == 2 * len(done)
    kept = {path.stem for path in open_files(ledger, scene.state).folder.glob("file-*")}
    assert kept == known | {file}
    starts = [len(tell(ledger, job.id)) for job in done]
    print(f"{len(done)} jobs, {sum(starts)} events, {KILLS} kills", file=sys.stderr)
    ledger.close()
