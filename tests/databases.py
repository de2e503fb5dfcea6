"""A ledger on each database: SQLite in a file, and PostgreSQL in a cluster made for the tests."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Generator
from pathlib import Path

import pytest

from timechat.ledger.database import Ledger, open_ledger

# PostgreSQL refuses to run as root; any other user of the system will do.
SERVANTS = ("postgres", "nobody")


def find_binaries() -> Path | None:
    """Where initdb and postgres are: on the path, or where Debian puts them."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return installed[-1].parent if installed else None


class Cluster:
    """A PostgreSQL of our own in a temporary folder, reached by a socket in it."""

    def __init__(self, binaries: Path) -> None:
        self.binaries = binaries
        self.folder = Path(tempfile.mkdtemp(prefix="timechat-pg-"))
        self.user: str | None = None
        if os.geteuid() == 0:
            known = {entry.pw_name for entry in pwd.getpwall()}
            self.user = next(name for name in SERVANTS if name in known)
            shutil.chown(self.folder, self.user)
        self._run("initdb", "-U", "timechat", "-A", "trust", "--no-sync", "-D", str(self.data))
        self.start()

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        options = f"-k {self.folder} -h '' -c fsync=off -c max_connections=40"
        log = str(self.folder / "log")
        for left in range(30, -1, -1):
            try:
                self._run("pg_ctl", "-D", str(self.data), "-w", "-l", log, "-o", options, "start")
                return
            except RuntimeError:
                if left == 0:
                    raise
                time.sleep(0.2)  # after a SIGKILL its children take a moment to notice

    def kill(self) -> None:
        self._run("pg_ctl", "-D", str(self.data), "-m", "immediate", "stop")

    def kill_nine(self) -> None:
        """SIGKILL to the server, as an administrator who is out of patience would."""
        os.kill(int((self.data / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)

    def database(self) -> str:
        """The URL of a new, empty database."""
        name = f"d{uuid.uuid4().hex[:12]}"
        self._run("createdb", "-h", str(self.folder), "-U", "timechat", name)
        return f"postgresql://timechat@/{name}?host={self.folder}"

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self.binaries / program), *arguments]
        # To a file: a server started here would keep a pipe open for ever.
        with tempfile.TemporaryFile() as said:
            done = subprocess.run(
                command, user=self.user, cwd="/", stdout=said, stderr=said, check=False
            )
            if done.returncode:
                said.seek(0)
                raise RuntimeError(f"{program} failed: {said.read().decode()}")


@pytest.fixture(scope="session")
def cluster() -> Generator[Cluster]:
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL on this machine (apt-get install postgresql)")
    made = Cluster(binaries)
    yield made
    made.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The same test on both databases."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return request.getfixturevalue("cluster").database()


@pytest.fixture
def ledger(ledger_url: str) -> Generator[Ledger]:
    opened = open_ledger(ledger_url)
    yield opened
    opened.close()
