"""What a run directory tells of a job while the run goes on: steps and checkpoints, each once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timechat.ledger.jobs import Checkpoint, Event, Job
from timechat.ledger.leases import Held
from timechat.ledger.tables import now_ms
from timechat.stages.jobs.job import checkpoint_name, find_checkpoints, metrics_of, read_metrics
from timechat.stages.runs.keep import pin

# As many as OpenAI keeps of a job. A run by itself keeps fewer; these are pinned.
KEPT = 3


class RunEvents:
    """Reads the run as it grows. The ledger takes nothing twice, so it may be told again."""

    def __init__(self, job: Job, run: Path) -> None:
        self.job = job
        self.run = run
        self._told: set[str] = set()
        self._seen = (0, 0, 0)

    def tell(self, held: Held, is_over: bool) -> None:
        """Tell the steps and checkpoints that were not told, in order. The newest step waits for
        its validation until something follows it, or the run is over."""
        # Before the rows: a checkpoint's own row is written before it.
        folders = find_checkpoints(self.run)
        rows = self._rows(len(folders), is_over)
        if not rows:
            return
        total = int((self.job.plan or {}).get("steps", 0))
        newest = max(rows)
        for step in sorted(rows):
            if step == 0:  # how the base stood before; no step of training, and clients know none
                continue
            if step == newest and not (is_over or step in folders):
                break
            if self._is_news(f"step-{step}"):
                held.tell(_step_event(step, total, rows))
            if step in folders and self._is_news(f"checkpoint-{step}"):
                self._keep(held, step, folders[step], metrics_of(step, rows))
        if total > newest > 0 and not is_over:
            elapsed = max(float(row.get("elapsed_s", 0.0)) for row in rows.values())
            left_ms = 1000 * elapsed / newest * (total - newest)
            held.change(finish_ms=now_ms() + round(left_ms))

    def _keep(self, held: Held, step: int, folder: Path, metrics: dict[str, float]) -> None:
        """Let a checkpoint stay and be chatted with, in place of one that is too many."""
        pin(self.run, step, True)
        if not (folder / "manifest.json").is_file():  # it went before it was pinned
            pin(self.run, step, False)
            return
        name = checkpoint_name(self.job, step)
        held.add_checkpoint(self.job.project, Checkpoint(step, name, metrics, str(folder)))
        held.tell(Event(f"checkpoint-{step}", f"Checkpoint created at step {step}: {name}"))
        for old in held.drop_checkpoints(KEPT):
            pin(self.run, old, False)
            text = f"Checkpoint of step {old} removed: the newest {KEPT} are kept"
            held.tell(Event(f"removed-{old}", text))

    def forget(self) -> None:
        """What was told last did not reach the ledger: tell everything again."""
        self._told.clear()
        self._seen = (0, 0, 0)

    def _is_news(self, key: str) -> bool:
        first = key not in self._told
        self._told.add(key)
        return first

    def _rows(self, num_folders: int, is_over: bool) -> dict[int, dict[str, Any]]:
        """The log's rows; none where nothing was written since the last look."""
        path = self.run / "metrics.jsonl"
        if not path.is_file():
            return {}
        status = path.stat()
        seen = (status.st_size, status.st_mtime_ns, num_folders)
        if seen == self._seen and not is_over:
            return {}
        self._seen = seen
        return read_metrics(self.run)


def _step_event(step: int, total: int, rows: dict[int, dict[str, Any]]) -> Event:
    found = metrics_of(step, rows)
    parts = [
        f"{words}={found[name]:.4f}"
        for words, name in (
            ("training loss", "train_loss"),
            ("validation loss", "valid_loss"),
            ("full validation loss", "full_valid_loss"),
        )
        if name in found
    ]
    data = {**found, "step": step, "total_steps": total}
    return Event(f"step-{step}", f"Step {step}/{total}: {', '.join(parts)}", data, type="metrics")
