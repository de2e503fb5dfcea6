"""Tiny runs in processes that may be killed: a zygote that forks them, and a way to break calls."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from timechat.store.files import read_json, read_lines, sha256

COUNT, KILL_BEFORE, KILL_AFTER, FAIL_ONCE, FAIL_FROM, SHORT_WRITE = range(1, 7)
HERE = Path(__file__).parent


class Zygote:
    """Starts tiny runs, one at a time."""

    def __init__(self, shim: Path | None) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if shim is not None:
            environment["LD_PRELOAD"] = str(shim)
        self.has_shim = shim is not None
        # How long a whole run of the recipe takes here and now, for signals at random moments.
        self.whole_s = 1.0
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def start(
        self, out: Path, recipe: Path, arm: tuple[Any, ...] = (), learn: bool = True, **more: Any
    ) -> int:
        """Begin a run; returns its process id. `more` is told in zygote.py."""
        ask = {"out": str(out), "recipe": str(recipe), "arm": arm, "only_learn": learn, **more}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(ask) + "\n")
        self.process.stdin.flush()
        return int(self._answer()["pid"])

    def wait(self) -> int:
        """The exit status of the run under way; minus the signal's number when one ended it."""
        return int(self._answer()["status"])

    def run(
        self, out: Path, recipe: Path, arm: tuple[Any, ...] = (), learn: bool = True, **more: Any
    ) -> int:
        self.start(out, recipe, arm, learn, **more)
        return self.wait()

    def kill_after(
        self, seconds: float, out: Path, recipe: Path, number: int, learn: bool = True
    ) -> int:
        """Run, with a signal after so many seconds."""
        started = time.monotonic()
        pid = self.start(out, recipe, learn=learn)
        timer = threading.Timer(seconds, os.kill, (pid, number))
        timer.start()
        status = self.wait()
        timer.cancel()
        timer.join()
        if status == 0 and learn:  # faster than was thought: the next signal comes sooner
            self.whole_s = min(self.whole_s, time.monotonic() - started)
        return status

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the zygote died"
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """The library that breaks calls, built here; None where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    target = tmp_path_factory.mktemp("shim") / "shim.so"
    ask = [compiler, "-shared", "-fPIC", "-O1", "-o", str(target), str(HERE / "shim.c"), "-ldl"]
    subprocess.run(ask, check=True)
    return target


@pytest.fixture(scope="session")
def zygote(shim: Path | None) -> Iterator[Zygote]:
    made = Zygote(shim)
    yield made
    made.close()


@pytest.fixture
def breaking(zygote: Zygote) -> Zygote:
    """The zygote where calls can be broken."""
    if not zygote.has_shim:
        pytest.skip("needs Linux and a C compiler, to stand between the process and the kernel")
    return zygote


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps, saved before the first and at every second one."""
    return write_recipe(tmp_path_factory.mktemp("recipe"))


def write_recipe(folder: Path, epochs: int = 2, every: int = 2) -> Path:
    from conftest import build_model, build_tokenizer
    from test_train import write_rows

    base = folder / "base"
    build_model(hidden_size=16, intermediate_size=16, num_hidden_layers=1).save_pretrained(base)
    build_tokenizer().save_pretrained(base)
    write_rows(folder / "rows.jsonl")
    text = json.dumps(
        {
            "base": str(base),
            "data": {"train": [str(folder / "rows.jsonl")]},
            "adapt": {"rank": 2, "strength": 1.0},
            "train": {
                "epochs": epochs,
                "batch_rows": 8,
                "learning_rate": 5e-3,
                "validations": 3,
                "checkpoint_every": every,
            },
            "evaluate": {"max_new_tokens": 4, "max_questions": 6},
        }
    )
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path


def proof(run: Path) -> dict[str, Any]:
    """What must be equal, bit for bit, in two runs of one recipe: the newest checkpoint's weights,
    average and optimizer, the weights that are served, and every line of the log but for its times
    and memory."""
    last = sorted((run / "checkpoints").glob("step-??????"))[-1]
    best = (run / "best").resolve()
    found = [*last.rglob("*.safetensors"), *best.glob("*.safetensors")]
    assert len(found) >= 4
    weights = {f"{p.parent.name}/{p.name}": sha256(p) for p in found}
    rows = [
        {k: v for k, v in row.items() if k not in ("elapsed_s", "peak_bytes")}
        for row in read_lines(run / "metrics.jsonl")
    ]
    return {"last": last.name, "best": best.name, "log": rows, **weights}


def answers(run: Path) -> dict[str, Any]:
    """What must be equal in two whole runs beside their `proof`: every answer of both sides, and
    what the report says of them."""
    report = read_json(run / "report.json")
    files = {str(p.relative_to(run)): sha256(p) for p in sorted(run.glob("evals/*/*.jsonl"))}
    return files | {name: report[name] for name in ("verdict", "task", "retention", "measures")}


@pytest.fixture(scope="session")
def uninterrupted(
    zygote: Zygote, recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("whole") / "run"
    started = time.monotonic()
    assert zygote.run(out, recipe) == 0, Path(f"{out}.log").read_text()
    zygote.whole_s = time.monotonic() - started
    return proof(out)


@pytest.fixture
def finish(zygote: Zygote, recipe: Path) -> Callable[[Path], dict[str, Any]]:
    """Run to the end whatever was left at a folder, and return its proof."""

    def go_on(out: Path) -> dict[str, Any]:
        assert zygote.run(out, recipe) == 0, Path(f"{out}.log").read_text()[-3000:]
        hidden = [p for p in out.parent.rglob(".*") if ".timechat-" in p.name]
        assert hidden == [], "something half-written was left"
        return proof(out)

    return go_on
