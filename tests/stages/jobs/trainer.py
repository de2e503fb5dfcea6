"""Stands in for `timechat` as a worker's child: plans and trains nothing, and leaves what a run
leaves, step by step, going on from its newest checkpoint like the real one."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

STEPS, EVERY = 6, 2


def plan() -> None:
    values = {"steps": STEPS, "train_seconds": 1, "memory_bytes": 1 << 20, "epochs": 1,
              "batch_rows": 8, "learning_rate": 1e-3, "rows": 10, "row_tokens": 100}  # fmt: skip
    print(json.dumps({"numbers": {name: {"value": value} for name, value in values.items()}}))


def train(recipe: str, run: Path, pause_s: float) -> None:
    if "fail: me" in Path(recipe).read_text():
        sys.exit("error: told to fail")
    if "dies" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)
    if "polite" in sys.argv:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    log = run / "metrics.jsonl"
    newest = max((int(p.name[5:]) for p in (run / "checkpoints").glob("step-*")), default=0)
    lines = log.read_text().splitlines() if log.is_file() else []
    rows = [json.loads(line) for line in lines]
    kept = [json.dumps(row) + "\n" for row in rows if row["step"] <= newest]
    log.write_text("".join(kept))
    with (run / "starts").open("a") as starts:
        starts.write(f"{newest}\n")
    for step in range(newest + 1, STEPS + 1):
        time.sleep(pause_s)
        with log.open("a") as file:
            row = {"step": step, "loss": 1 / step, "accuracy": 1 - 1 / step, "tokens": 10,
                   "elapsed_s": step * pause_s}  # fmt: skip
            file.write(json.dumps(row) + "\n")
            if step % EVERY == 0:
                row = {"step": step, "validation_loss": 2 / step, "validation_accuracy": 0.5}
                file.write(json.dumps(row) + "\n")
        if step % EVERY == 0:
            folder = run / "checkpoints" / f"step-{step:06d}"
            folder.mkdir()
            (folder / "manifest.json").write_text("{}")
    measure = {"before": 0.1, "after": 0.2, "difference": 0.1, "verdict": "improved"}
    report = {"verdict": "improved", "headline": "It rose.", "task": measure,
              "retention": measure, "checks": []}  # fmt: skip
    (run / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    pause_s = float(sys.argv[1])
    if "plan" in sys.argv:
        plan()
    else:
        verb = sys.argv.index("train")
        train(sys.argv[verb + 1], Path(sys.argv[verb + 3]), pause_s)
