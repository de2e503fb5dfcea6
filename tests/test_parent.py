"""Children end with their parent: busy or waiting, at once or after a word of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from timechat.parent import PARENT, child_environment, follow

# A child that never looks up from its work; with "look", on a system without pidfd_open.
BUSY = """
import os, sys
if sys.argv[1] == "look":
    del os.pidfd_open
from timechat import parent
parent.LOOK_S = 0.05
parent.die_with_parent()
print(os.getpid(), flush=True)
while True:
    pass
"""
# A parent that starts what it is told to and waits, to be killed.
START = """
import subprocess, sys
from timechat.parent import child_environment
subprocess.Popen([sys.executable, *sys.argv[1:]], env=child_environment()).wait()
"""
# A parent with an engine and a renderer of its own.
ENGINES = """
import asyncio, sys
from pathlib import Path
from timechat.engine.process import ProcessEngine
from timechat.engine.sandbox import SandboxScribe
async def main():
    engine = ProcessEngine({"kind": "scripted", "name": "scripted"})
    scribe = SandboxScribe(Path(sys.argv[1]))
    await asyncio.gather(engine.start(), scribe.start())
    print(engine.pid, flush=True)
    print(scribe._child._process.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def ends(pid: int, seconds: float = 10.0) -> bool:
    """Whether the process is gone, or a zombie that nobody waited for, within so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = subprocess.run(
                ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=True
            ).stdout
        except subprocess.CalledProcessError:
            return True
        if state.startswith("Z"):
            return True
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    return False


@contextmanager
def started(*words: str) -> Iterator[subprocess.Popen[str]]:
    parent = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    try:
        yield parent
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()


@pytest.mark.parametrize("how", ["told", "look"])
def test_a_busy_child_ends_when_its_parent_is_killed(how: str) -> None:
    with started("-c", START, "-c", BUSY, how) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        assert ends(child)


def test_an_engine_and_a_renderer_end_with_their_server(tiny_base: Path) -> None:
    with started("-c", ENGINES, str(tiny_base)) as parent:
        assert parent.stdout is not None
        children = [int(parent.stdout.readline()) for _ in range(2)]
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        assert [ends(child) for child in children] == [True, True]


def test_a_module_that_knows_nothing_of_parents_is_run_as_it_is_and_ends_too(
    tmp_path: Path,
) -> None:
    (tmp_path / "stranger.py").write_text(
        "import os, sys, time\nprint(os.getpid(), *sys.argv[1:], flush=True)\ntime.sleep(60)\n"
    )
    environment = dict(os.environ)
    os.environ["PYTHONPATH"] = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    try:
        with started("-c", START, "-m", "timechat.parent", "stranger", "--word") as parent:
            assert parent.stdout is not None
            child, word = parent.stdout.readline().split()
            assert word == "--word"
            os.kill(parent.pid, signal.SIGKILL)
            parent.wait()
            assert ends(int(child))
    finally:
        os.environ.clear()
        os.environ.update(environment)


def test_a_process_that_nobody_named_follows_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PARENT, raising=False)
    follow(lambda: pytest.fail("nobody died"))


def test_the_name_of_the_parent_is_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PARENT, str(os.getppid()))
    follow(lambda: None)
    assert PARENT not in os.environ
    assert child_environment()[PARENT] == str(os.getpid())


def test_a_parent_that_was_gone_before_the_child_looked_is_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gone = subprocess.Popen([sys.executable, "-S", "-c", ""])
    gone.wait()
    monkeypatch.setenv(PARENT, str(gone.pid))
    told: list[bool] = []
    follow(lambda: told.append(True))
    deadline = time.monotonic() + 10
    while not told and time.monotonic() < deadline:
        time.sleep(0.01)
    assert told == [True]
