"""A child process that answers one line after another, each within its time.

For work on what strangers sent that may never end or take all memory: the child is killed, and
the next question gets a fresh one. What it does is its module's matter (`sandbox`, `trial`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from timechat.engine.process import spawn


class Attendant:
    """A child running `module`, opened by `greeting`. One question at a time: whoever asks holds
    `turn`."""

    def __init__(self, module: str, greeting: dict[str, Any], start_s: float) -> None:
        self.turn = asyncio.Lock()
        self._module, self._greeting, self._start_s = module, greeting, start_s
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    @property
    def is_open(self) -> bool:
        return self._writer is not None

    async def open(self) -> dict[str, Any] | None:
        """Start the child; its answer to the greeting. None where it died, TimeoutError where it
        did not answer; it is gone then."""
        self._process, self._reader, self._writer = await spawn(self._module)
        return await self.ask(self._greeting, self._start_s)

    async def ask(self, row: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        """The child's answer. None where it died, TimeoutError where it took longer; it is gone
        then, and also when the caller leaves midway."""
        assert self._writer is not None
        assert self._reader is not None
        line = b""
        try:
            self._writer.write(json.dumps(row).encode() + b"\n")
            async with asyncio.timeout(seconds):
                with contextlib.suppress(ConnectionError):
                    line = await self._reader.readline()
        finally:
            if not line:  # hung, dead or left alone: its state is unknown
                await self.stop()
        return json.loads(line) if line else None

    async def stop(self) -> None:
        process, writer = self._process, self._writer
        self._process = self._reader = self._writer = None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        if writer is not None:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        if process is not None:
            await process.wait()
