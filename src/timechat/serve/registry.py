"""The models that a server answers with: added, switched and removed while it runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from timechat.engine.responder import Responder
from timechat.errors import nearest
from timechat.serve.errors import ApiError

# How long a version that lost its name still takes what was asked of it a moment before.
GRACE_S = 0.5


@dataclass(frozen=True, slots=True)
class Served:
    """One name and what answers to it. `digest` tells versions apart; `project` None is open to
    every caller."""

    name: str
    responder: Responder
    digest: str = ""
    project: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    details: dict[str, Any] = field(default_factory=dict[str, Any])

    def sees(self, project: str) -> bool:
        return self.project is None or self.project == project


class Shelf(Protocol):
    """Models that are loaded when somebody asks for them, each seen by one project."""

    def holds(self, name: str) -> bool:
        """Whether the model of that name, now loaded, belongs on the shelf."""
        ...

    def rows(self, project: str) -> list[dict[str, Any]]:
        """What `/v1/models` says of them."""
        ...

    def row(self, name: str, project: str) -> dict[str, Any] | None: ...

    async def fetch(self, name: str, project: str) -> None:
        """Add the model of that name to the registry, if there is one."""
        ...

    async def forget(self, name: str, project: str) -> bool: ...


class Registry:
    """Names to models. A model is immutable: a new version takes over its name."""

    def __init__(self, drain_s: float = 30.0, retire_s: float = 600.0) -> None:
        self.drain_s = drain_s
        self.retire_s = retire_s
        self.draining = False
        self.shelf: Shelf | None = None
        self.loading: set[str] = set()
        self._models: dict[str, Served] = {}
        self._leaving: dict[asyncio.Task[None], Responder] = {}

    def __iter__(self) -> Iterator[Served]:
        return iter(list(self._models.values()))

    @property
    def ready(self) -> bool:
        return (
            not self.draining
            and not self.loading
            and bool(self._models)
            and all(model.responder.ready for model in self)
        )

    def get(self, name: str, project: str) -> Served:
        """Raises ApiError 404 naming the nearest model; another project's is as good as absent.

        One that is still loading is 503.
        """
        model = self._models.get(name)
        if model is None and name in self.loading:
            raise ApiError(503, f"{name} is loading", code="model_loading", retry_after_s=2.0)
        if model is None or not model.sees(project):
            known = [one.name for one in self if one.sees(project)]
            hint = nearest(name, known) if known else "none is served yet"
            raise ApiError(
                404,
                f"The model `{name}` does not exist here: {hint}",
                code="model_not_found",
                param="model",
            )
        return model

    def seen_by(self, project: str) -> list[Served]:
        return [model for model in self if model.sees(project)]

    async def add(self, model: Served) -> None:
        """Start (and so warm) the model, then give it its name; a former holder is drained.

        Requests that run on the former version end there. Raises ModelError where it cannot start;
        the former version then stays.
        """
        if not model.responder.ready:
            await model.responder.start()
        former = self._models.get(model.name)
        self._models[model.name] = model
        if former is not None and former.responder is not model.responder:
            self._retire(former)

    async def remove(self, name: str) -> None:
        """Take the name away; what still runs may finish."""
        former = self._models.pop(name, None)
        if former is not None and all(m.responder is not former.responder for m in self):
            self._retire(former)

    def _retire(self, former: Served) -> None:
        """Let what runs on a former version end there, however long it takes within bounds."""

        async def leave() -> None:
            # Who has just looked the name up still gets an answer here.
            await asyncio.sleep(GRACE_S)
            await former.responder.drain(self.retire_s)
            await former.responder.stop()

        task = asyncio.create_task(leave())
        self._leaving[task] = former.responder
        task.add_done_callback(lambda done: self._leaving.pop(done, None))

    async def close(self, drain_s: float | None = None) -> None:
        """No new requests; running ones get `drain_s`; then everything ends."""
        self.draining = True
        deadline = self.drain_s if drain_s is None else drain_s
        responders = {id(model.responder): model.responder for model in self}.values()
        both = (*responders, *self._leaving.values())
        await asyncio.gather(*(one.drain(deadline) for one in both))
        leaving = dict(self._leaving)
        if leaving:  # those have had the same time by now
            for task in leaving:
                task.cancel()
            await asyncio.gather(*leaving, return_exceptions=True)
        everyone = (*responders, *leaving.values())
        await asyncio.gather(*(one.stop() for one in everyone))
