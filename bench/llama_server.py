"""llama.cpp's own server, as llama-cpp-python brings it, on a free port: what ours is set beside.

One conversation at a time is what it answers; others wait. Asking and measuring are
`chat_latency`'s.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO

import httpx

from timechat.export.readback import open_gguf

START_S = 120.0
WINDOW = 4096


class NotRunError(Exception):
    """It cannot be measured, and why."""


def check_vocabulary(file: Path) -> None:
    """Raises NotRunError for a file that llama.cpp would end this process over: it is given text
    here, and the file of our engine's cache holds no vocabulary. ExportError for no GGUF at all."""
    if open_gguf(file).metadata.get("tokenizer.ggml.model") in (None, "none", "no_vocab"):
        raise NotRunError(
            f"{file} has no vocabulary: give one that `timechat export --format gguf` wrote"
        )


@asynccontextmanager
async def llama_server(file: Path) -> AsyncGenerator[str]:
    """The server's address, ending in `/v1`. Raises NotRunError with its last words where it does
    not start, or ends while it is asked."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "llama_cpp.server", "--model", str(file), "--host", "127.0.0.1",
        "--port", str(port), "--n_ctx", str(WINDOW), "--n_threads", str(os.cpu_count()),
        "--n_threads_batch", str(os.cpu_count()), "--interrupt_requests", "false",
        "--verbose", "false",
    ]  # fmt: skip
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        try:
            address = f"http://127.0.0.1:{port}/v1"
            await _answering(address, process, said)
            try:
                yield address
            except httpx.TransportError as error:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(1)
                if process.poll() is None:
                    raise NotRunError(f"it stopped answering: {error!r}") from None
                raise NotRunError(_last_words(process, said)) from None
        finally:
            process.kill()
            process.wait()


async def _answering(address: str, process: subprocess.Popen[bytes], said: IO[str]) -> None:
    async with httpx.AsyncClient() as client:
        for _ in range(int(START_S / 0.2)):
            if process.poll() is not None:
                raise NotRunError(_last_words(process, said))
            try:
                await client.get(f"{address}/models")
            except httpx.TransportError:
                await asyncio.sleep(0.2)
            else:
                return
    raise NotRunError(f"it did not answer within {START_S:g} s")


def _last_words(process: subprocess.Popen[bytes], said: IO[str]) -> str:
    said.seek(0)
    lines = [line.strip() for line in said if line.strip()] or ["without a word"]
    # After an abort of its own come a debugger's words.
    told = [line for line in lines if "GGML_ASSERT" in line or "Error" in line] or lines
    return f"it ended with status {process.poll()}: {told[-1][:300]}"
