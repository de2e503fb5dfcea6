"""Tuned models behind their `ft:` names: loaded when somebody asks, without a restart.

At most `places` of them are loaded at once, the least recently asked leaves first. Which names
there are, and whose, is the ledger's.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request

from timechat.errors import ModelError
from timechat.ledger.models import Models, TunedModel
from timechat.serve.errors import ApiError
from timechat.serve.gate import gate_of
from timechat.serve.registry import Registry, Served
from timechat.stages.serving.serve import open_tuned

router = APIRouter(tags=["models"])
PLACES = 2


class Shelf:
    """Tuned models that wait to be asked. A registry finds here what it does not serve yet."""

    def __init__(self, registry: Registry, models: Models, places: int = PLACES) -> None:
        self.registry = registry
        self.models = models
        self.places = places
        self._loaded: list[str] = []
        self._lock = asyncio.Lock()

    def holds(self, name: str) -> bool:
        return name in self._loaded

    def rows(self, project: str) -> list[dict[str, Any]]:
        """What `/v1/models` says of the project's tuned models."""
        return [model_row(model) for model in self.models.list(project)]

    def row(self, name: str, project: str) -> dict[str, Any] | None:
        found = self.models.get(name, project)
        return model_row(found) if found is not None else None

    async def fetch(self, name: str, project: str) -> None:
        """Load the model of that name into the registry, if there is one for this project."""
        if not name.startswith("ft:"):
            return
        found = await asyncio.to_thread(self.models.get, name, project)
        if found is None:
            return
        async with self._lock:
            if name in self._loaded:
                self._loaded.remove(name)
                self._loaded.append(name)
                return
            while len(self._loaded) >= self.places:
                await self.registry.remove(self._loaded.pop(0))
            try:
                opened, responder = await asyncio.to_thread(open_tuned, name, Path(found.folder))
                made_s = found.created_ms // 1000
                await self.registry.add(Served(name, responder, opened.digest, project, made_s))
            except ModelError as error:
                raise ApiError(
                    404, f"The model `{name}` cannot be loaded: {error}", code="model_not_found"
                ) from None
            self._loaded.append(name)

    async def forget(self, name: str, project: str) -> bool:
        """Delete a model's name; whether it was there."""
        if not await asyncio.to_thread(self.models.remove, name, project):
            return False
        async with self._lock:
            if name in self._loaded:
                self._loaded.remove(name)
                await self.registry.remove(name)
        return True


@router.delete("/v1/models/{name:path}")
async def delete_model(name: str, request: Request) -> dict[str, Any]:
    """Delete a tuned model of the caller's project. What the server was started with stays."""
    gate = gate_of(request)
    shelf = gate.registry.shelf
    if shelf is None or not await shelf.forget(name, gate.caller.project):
        gate.registry.get(name, gate.caller.project)  # 404 where there is none
        raise ApiError(400, f"`{name}` was not tuned here and cannot be deleted", param="model")
    return {"id": name, "object": "model", "deleted": True}


def model_row(model: TunedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created_ms // 1000,
        "owned_by": model.project,
    }
