"""Rendering and tokenising in a child process: a hostile template costs a restart, nothing else.

Templates come with models, and a loop in one can run for ever: a thread could not be stopped. The
child has a limit on memory, each conversation one on time and size; the event loop never waits for
a tokenizer. Lines of JSON go both ways, one conversation at a time.
"""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import sys
from array import array
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timechat.engine.attendant import Attendant
from timechat.engine.calls import Form, form_of
from timechat.engine.scribe import MessageError, encode, render
from timechat.errors import ModelError, UserError
from timechat.parent import die_with_parent

# A prompt of 100,000 tokens takes about 0.2 s; what takes longer than this is not rendering.
RENDER_S = 5.0
START_S = 180.0
# Beyond what the libraries hold themselves (about 1 GiB of address space without weights).
MEMORY_BYTES = 8 << 30
MAX_TOKENS = 1 << 20


class SandboxScribe:
    """A scribe in a child process, started again when a conversation made it hang or die."""

    def __init__(self, folder: Path, render_s: float = RENDER_S) -> None:
        self.folder = folder
        self.stop_ids: frozenset[int] = frozenset()
        self.calls: Form = ""
        self.render_s = render_s
        greeting = {"folder": str(folder)}
        self._child = Attendant("timechat.engine.sandbox", greeting, START_S)

    async def start(self) -> None:
        await self._open()

    async def prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
    ) -> list[int]:
        return await self._ask({"messages": list(messages), "tools": list(tools)})

    async def encode(self, text: str) -> list[int]:
        return await self._ask({"text": text})

    async def _ask(self, row: dict[str, Any]) -> list[int]:
        async with self._child.turn:
            if not self._child.is_open:
                await self._open()
            try:
                found = await self._child.ask(row, self.render_s)
            except TimeoutError:
                raise MessageError(
                    "messages", f"the chat template took longer than {self.render_s:g} s"
                ) from None
        if found is None:
            raise MessageError("messages", "the chat template ran out of memory")
        if "ids" in found:
            return _unpacked(found["ids"])
        if "param" in found:
            raise MessageError(found["param"], found["error"])
        raise UserError(found["error"])

    async def _open(self) -> None:
        try:
            row: dict[str, Any] = await self._child.open() or {"error": "its process died"}
        except TimeoutError:
            row = {"error": "its chat template does not come to an end"}
        if "error" in row:
            await self.stop()
            raise ModelError(f"{self.folder} cannot render conversations: {row['error']}")
        self.stop_ids = frozenset(row["stop"])
        self.calls = row["calls"]

    async def stop(self) -> None:
        await self._child.stop()


def serve(end: socket.socket) -> None:
    """Answer one line after the other until the parent leaves."""
    from timechat.model.load import load_tokenizer
    from timechat.model.render import Renderer

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    lines = end.makefile("rwb")
    renderer: Renderer | None = None
    for line in lines:
        row = json.loads(line)
        try:
            if renderer is None:
                renderer = Renderer(load_tokenizer(Path(row["folder"])))
                calls = form_of(renderer.template)
                out: dict[str, Any] = {"stop": sorted(renderer.stop_ids), "calls": calls}
            else:
                out = {"ids": _packed(_answer(renderer, row))}
        except MessageError as error:
            out = {"error": str(error), "param": error.param}
        except Exception as error:  # whatever a template raises is the caller's news
            out = {"error": f"the conversation cannot be rendered: {error}"[:500]}
        lines.write(json.dumps(out).encode() + b"\n")
        lines.flush()


def _answer(renderer: Any, row: dict[str, Any]) -> list[int]:
    ids = (
        encode(renderer, row["text"])
        if "text" in row
        else render(renderer, row["messages"], row["tools"])
    )
    if len(ids) > MAX_TOKENS:
        raise MessageError("messages", f"{len(ids)} tokens are more than can be read")
    return ids


def _packed(ids: Sequence[int]) -> str:
    """Ids as one JSON string: a million numbers would hold up the event loop that reads them."""
    return b64encode(array("i", ids).tobytes()).decode()


def _unpacked(text: str) -> list[int]:
    ids = array("i")
    ids.frombytes(b64decode(text))
    return ids.tolist()


if __name__ == "__main__":
    die_with_parent()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        serve(socket.socket(fileno=int(sys.argv[1])))
