"""A worker in a process of its own, to be killed: work.py LEDGER STATE PAUSE_S."""

from __future__ import annotations

import sys
from pathlib import Path

from timechat.ledger.database import open_ledger
from timechat.stages.jobs import executor, process, worker

TRAINER = str(Path(__file__).with_name("trainer.py"))


def main(url: str, state: str, pause_s: str) -> None:
    process.GRACE_S = 0.3  # the stand-in does not look whether its parent lives
    executor.BEAT_S = worker.LOOK_S = 0.1
    command = (sys.executable, "-S", TRAINER, pause_s)
    worker.Worker(open_ledger(url), Path(state), command=command).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
