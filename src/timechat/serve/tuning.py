"""Fine-tuning beside serving: the ledger's routes, tuned models by name, and a worker.

What a server without it lacks, it lacks entirely: no route of these is there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from fastapi import APIRouter, FastAPI
from sqlalchemy.exc import SQLAlchemyError

from timechat.ledger.database import Ledger
from timechat.ledger.files import PROJECT_BYTES, open_files
from timechat.ledger.jobs import Jobs
from timechat.ledger.keys import valid_keys
from timechat.ledger.models import Models
from timechat.model.machine import free_memory
from timechat.serve import files, jobs, tuned, uploads
from timechat.serve.keys import Keys
from timechat.serve.registry import Registry
from timechat.serve.settings import Settings
from timechat.stages.jobs.worker import Worker
from timechat.stages.serving.serve import Opened

KEYS_S = 2.0
ROUTERS: tuple[APIRouter, ...] = (files.router, uploads.router, jobs.router, tuned.router)
# Beside the bytes of a file come a few lines that say what it is.
ROOM = 1 << 20
BOUNDS = {"/v1/files": files.MAX_FILE_BYTES + ROOM, "/v1/uploads": uploads.MAX_PART_BYTES + ROOM}


class Tuning:
    """Everything that fine-tuning over HTTP needs, in one folder and its ledger."""

    def __init__(
        self,
        state: Path,
        ledger: Ledger,
        models: Sequence[Opened],
        say: Callable[[str], None],
        at_once: int = 1,
        project_bytes: int = PROJECT_BYTES,
    ) -> None:
        self.state = state.resolve()
        self.ledger = ledger
        self.jobs = Jobs(self.ledger)
        self.files = open_files(self.ledger, self.state, project_bytes)
        # What is tuned already is not a base: its adapter would be lost.
        self.bases = {
            m.name: str(m.source.folder)
            for m in models
            if m.source.adapter is None and not m.is_hosted
        }
        self.worker = Worker(self.ledger, self.state, at_once, free_memory(), say=say)
        self._stopped = threading.Event()
        self._keys: threading.Thread | None = None
        self._thread = threading.Thread(target=self.worker.run, name="worker", daemon=True)

    def attach(self, app: FastAPI, registry: Registry) -> None:
        """Give the routes what they need, and the registry the tuned models."""
        app.state.files = self.files
        app.state.jobs = self.jobs
        app.state.bases = self.bases
        registry.shelf = tuned.Shelf(registry, Models(self.ledger))

    def start(self, keys: Keys) -> None:
        """Begin to work, and to follow the ledger's keys."""
        keys.adopt(valid_keys(self.ledger))
        self._thread.start()

        def follow() -> None:
            while not self._stopped.wait(KEYS_S):
                with suppress(SQLAlchemyError):  # out of reach for now: the keys stay as they were
                    keys.adopt(valid_keys(self.ledger))

        self._keys = threading.Thread(target=follow, name="keys", daemon=True)
        self._keys.start()

    def stop(self) -> None:
        """End the worker and its children; their jobs go on at the next start."""
        self._stopped.set()
        if self._keys is not None:
            self._keys.join()
        self.worker.stop()
        if self._thread.is_alive():
            self._thread.join()


def with_uploads(settings: Settings) -> Settings:
    """The settings with room for files; every other route keeps its small bound."""
    bounds = {**BOUNDS, **settings.limits.body_bytes_of}
    return replace(settings, limits=replace(settings.limits, body_bytes_of=bounds))
