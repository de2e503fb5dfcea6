"""An engine in a child process: what happens to it happens to nobody else.

The child runs `worker.py`. When it dies, its running streams end FAILED at once and it is started
again, at first immediately, then with growing pauses. One that outgrows the memory planned for it
takes no more requests, may finish what it has, and is started again. Which core runs in it is the
child's matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import sys
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from timechat.engine import memory
from timechat.engine.occupancy import Occupancy
from timechat.engine.protocol import Capabilities, Delta, Ending, EngineError, Request
from timechat.engine.worker import decode_delta, encode_request
from timechat.errors import ModelError
from timechat.parent import child_environment

log = logging.getLogger("timechat.engine")
# Pause before the next start after a death, in seconds, by how many came in a row.
PAUSES = (0.0, 0.5, 2.0, 5.0, 15.0, 30.0)
# A child that lived this long died of something new: pauses begin anew.
STEADY_S = 60.0
# How often the child's memory is looked at, and how long what runs may go on once it is too much.
LOOK_S = 2.0
FINISH_S = 20.0
_LINE_LIMIT = 1 << 24


class ProcessEngine:
    """A core of `spec` (see `worker.build_core`) behind a socket."""

    def __init__(
        self,
        spec: dict[str, Any],
        margin_bytes: int = memory.MARGIN_BYTES,
        look_s: float = LOOK_S,
        finish_s: float = FINISH_S,
    ) -> None:
        self.spec = spec
        self.margin_bytes, self.look_s, self.finish_s = margin_bytes, look_s, finish_s
        self.starts = 0
        self.outgrown = False
        self.step_s = 0.0
        self._known: Capabilities | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._streams: dict[int, asyncio.Queue[Delta]] = {}
        self._held: set[int] = set()  # keys whose compute is not freed yet
        self._next = 0
        self._draining = False
        self._stopped = False
        self._keeper: asyncio.Task[None] | None = None
        self._occupancy = Occupancy()

    @property
    def capabilities(self) -> Capabilities:
        if self._known is None:
            raise EngineError("the engine has not started")
        return self._known

    @property
    def running(self) -> int:
        return len(self._held)

    @property
    def ready(self) -> bool:
        return self._writer is not None and not self._draining and not self.outgrown

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Start the child and wait until its weights are loaded. Raises ModelError."""
        reader = await self._spawn()
        self._keeper = asyncio.create_task(self._keep(reader))

    async def _spawn(self) -> asyncio.StreamReader:
        self._process, reader, writer = await spawn("timechat.engine.worker")
        writer.write(json.dumps({"load": self.spec}).encode() + b"\n")
        line = await reader.readline()
        row: dict[str, Any] = (
            json.loads(line) if line else {"refused": "its process died while loading"}
        )
        if "refused" in row:
            writer.close()
            await self._process.wait()
            raise ModelError(f"{self.spec['name']} could not be started: {row['refused']}")
        able = Capabilities(**row["ready"])
        note = "; ".join(part for part in (self.spec.get("note"), able.note) if part)
        self._known = replace(able, note=note)
        self._writer = writer
        self.outgrown = False
        self.starts += 1
        return reader

    async def _keep(self, reader: asyncio.StreamReader) -> None:
        """Hand deltas to their streams; when the child dies, start it again."""
        loop = asyncio.get_running_loop()
        deaths = 0
        while not self._stopped:
            born = loop.time()
            watching = asyncio.create_task(self._watch())
            try:
                await self._listen(reader)
            finally:
                watching.cancel()
            self._lose()
            if self._stopped:
                return
            deaths = deaths + 1 if loop.time() - born < STEADY_S else 1
            assert self._process is not None
            log.warning("engine %s died (%s)", self.spec["name"], await self._process.wait())
            while not self._stopped:
                await asyncio.sleep(PAUSES[min(deaths - 1, len(PAUSES) - 1)])
                try:
                    reader = await self._spawn()
                    break
                except (ModelError, OSError) as error:
                    log.warning("engine %s: %s", self.spec["name"], error)
                    deaths += 1

    async def _watch(self) -> None:
        """End the child once it holds more than was planned; `_keep` starts it again."""
        child, kv_bytes = self._process, self.capabilities.kv_bytes
        ready = memory.held_by(child.pid) if child is not None else None
        if child is None or ready is None or kv_bytes is None:
            return
        most = memory.most(ready, kv_bytes, self.margin_bytes)
        while (held := memory.held_by(child.pid)) is not None and held.own <= most:
            await asyncio.sleep(self.look_s)
        if held is None:
            return
        self.outgrown = True
        name, mib = self.spec["name"], 1 << 20
        log.warning("engine %s holds %d MiB, at most %d were planned: it is started again once "
                    "its answers have ended", name, held.own // mib, most // mib)  # fmt: skip
        deadline = asyncio.get_running_loop().time() + self.finish_s
        while self._held and asyncio.get_running_loop().time() < deadline:
            held = memory.held_by(child.pid)
            if held is None or held.own > 2 * most:
                break
            await asyncio.sleep(min(self.look_s, 0.1))
        with contextlib.suppress(ProcessLookupError):
            child.kill()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError, ValueError):
            while line := await reader.readline():
                row = json.loads(line)
                self.step_s = row.get("step_s", self.step_s)
                for encoded in row["deltas"]:
                    key, delta = decode_delta(encoded)
                    if delta.ending is not None:
                        self._free(key)
                    if (queue := self._streams.get(key)) is not None:
                        queue.put_nowait(delta)

    def _lose(self) -> None:
        """The child is gone: every stream ends, and nothing is held any more."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        why = "outgrew its memory and was ended" if self.outgrown else "died"
        for queue in self._streams.values():
            queue.put_nowait(Delta(None, Ending.FAILED, detail=f"the engine's process {why}"))
        for key in list(self._held):
            self._free(key)

    def _free(self, key: int) -> None:
        if key in self._held:
            self._held.remove(key)
            self._occupancy.leave()

    def _send(self, row: dict[str, Any]) -> None:
        if self._writer is not None:
            self._writer.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")

    async def stream(self, request: Request) -> AsyncGenerator[Delta]:
        if not self.ready:
            raise EngineError("the engine is starting again" if not self._draining else "draining")
        key = self._next
        self._next += 1
        queue: asyncio.Queue[Delta] = asyncio.Queue()
        self._streams[key] = queue
        self._held.add(key)
        self._occupancy.enter()
        self._send({"submit": key, "request": encode_request(request)})
        try:
            while True:
                delta = await queue.get()
                yield delta
                if delta.ending is not None:
                    return
        finally:
            del self._streams[key]
            if key in self._held:
                self._send({"cancel": key})

    async def drain(self, deadline_s: float) -> bool:
        self._draining = True
        return await self._occupancy.emptied(deadline_s)

    async def stop(self) -> None:
        """End the child. Streams that still run end FAILED."""
        self._stopped = True
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        writer = self._writer
        self._lose()
        if writer is not None:
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        if self._process is not None and self._process.returncode is None:
            try:
                await asyncio.wait_for(self._process.wait(), 2.0)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()


async def spawn(
    module: str,
) -> tuple[asyncio.subprocess.Process, asyncio.StreamReader, asyncio.StreamWriter]:
    """A child running `module` with one end of a private socket; its other end is ours.

    It is told whose child it is (`timechat.parent`), so that it ends with us even when it is busy.
    """
    ours, theirs = socket.socketpair()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        str(theirs.fileno()),
        pass_fds=[theirs.fileno()],
        stdin=asyncio.subprocess.DEVNULL,
        env={**child_environment(), "TOKENIZERS_PARALLELISM": "false"},
    )
    theirs.close()
    reader, writer = await asyncio.open_connection(sock=ours, limit=_LINE_LIMIT)
    return process, reader, writer
