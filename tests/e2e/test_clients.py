"""The whole walk with the oldest 1.x and the newest of OpenAI's clients, against a real server.

The server is `timechat serve --state` on a tiny random model; it is killed and started again while
the job trains. Each client lives in a virtual environment of its own.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from harness import write_recipe

from timechat.ledger.database import open_ledger
from timechat.ledger.jobs import Jobs

pytestmark = pytest.mark.slow
# The first releases hand httpx an argument that it has forgotten since.
CLIENTS = {"oldest": ["openai==1.0.0", "httpx<0.28"], "newest": ["openai>=3"]}
WALK = Path(__file__).with_name("client_walk.py")


class Server:
    """`timechat serve` on a tiny model, with its state in a folder."""

    def __init__(self, folder: Path) -> None:
        write_recipe(folder)
        self.base, self.rows, self.state = folder / "base", folder / "rows.jsonl", folder / "state"
        self.log = folder / "serve.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    def start(self) -> None:
        words = ["serve", str(self.base), "--port", str(self.port), "--state", str(self.state)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "timechat", *words], stdout=log, stderr=log
            )
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and self.process.poll() is None:
            with suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{self.port}/ready").status_code == 200:
                    return
            time.sleep(0.2)
        self.kill()
        raise AssertionError(self.log.read_text())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    made = Server(tmp_path_factory.mktemp("server"))
    yield made
    made.process.terminate()
    made.process.wait(120)


@pytest.fixture(params=sorted(CLIENTS))
def python(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The interpreter of an environment with that client."""
    venv.create(tmp_path / "venv", with_pip=True)
    found = tmp_path / "venv" / "bin" / "python"
    ask = [str(found), "-m", "pip", "install", "--quiet", *CLIENTS[request.param]]
    done = subprocess.run(ask, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"pip could not install {CLIENTS[request.param]}: {done.stderr[-300:]}")
    return found


def test_the_whole_walk_through_a_server_that_is_killed(server: Server, python: Path) -> None:
    url = f"http://127.0.0.1:{server.port}/v1"
    ask = [str(python), str(WALK), url, str(server.rows), server.base.name]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    walk = subprocess.Popen(
        ask, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    assert walk.stdout is not None
    first = walk.stdout.readline().strip()
    assert first.startswith("ftjob-"), first + walk.stdout.read()
    ledger = open_ledger(server.state / "ledger.db")
    deadline = time.monotonic() + 600
    while (job := Jobs(ledger).get(first)) is not None and job.status != "running":
        assert job.is_open, job.error
        assert time.monotonic() < deadline, job
        time.sleep(0.1)
    ledger.close()
    server.kill()
    server.start()
    said, _ = walk.communicate(timeout=900)
    assert walk.returncode == 0, said + server.log.read_text()
    assert "walked with" in said
    print(said)
