"""The child process of an engine: a `Core` between two ends of a socket, on one thread.

Lines of JSON go both ways (nothing here unpickles). In: `load`, `submit`, `cancel`. Out: `ready`
with the capabilities, or `refused`; then `deltas`, a line per step. The parent's end closing is
the order to leave. Restarting and waiting are the parent's work (`process.py`).
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from timechat.engine.protocol import Core, Delta, Ending, Request, Sampling, SchemaError
from timechat.errors import TimeChatError
from timechat.parent import die_with_parent


def encode_request(request: Request) -> dict[str, Any]:
    return {
        "prompt": list(request.prompt),
        "sampling": asdict(request.sampling),
        "stop": sorted(request.stop),
        "schema": request.schema,
        "logprobs": request.logprobs,
    }


def decode_request(row: dict[str, Any]) -> Request:
    sampling = Sampling(**row["sampling"])
    stop = frozenset(row["stop"])
    return Request(row["prompt"], sampling, stop, row["schema"], row["logprobs"])


def encode_delta(key: int, delta: Delta) -> list[Any]:
    ending = delta.ending.value if delta.ending is not None else None
    said = [delta.logprob, delta.top, delta.detail, delta.is_misfit]
    return [key, delta.token, ending, *said]


def decode_delta(row: list[Any]) -> tuple[int, Delta]:
    key, token, ending, logprob, top, detail, is_misfit = row
    pairs = tuple((int(t), float(v)) for t, v in top)
    ended = Ending(ending) if ending else None
    return key, Delta(token, ended, logprob, pairs, detail, is_misfit)


class _Lines:
    """Lines of JSON over a socket; reading never waits longer than asked."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self.buffer = b""

    def read(self, wait: bool) -> list[dict[str, Any]]:
        """What has arrived; with `wait`, at least one. Raises EOFError when the parent left."""
        rows: list[dict[str, Any]] = []
        while True:
            if not select.select([self.end], [], [], None if wait and not rows else 0)[0]:
                return rows
            chunk = self.end.recv(1 << 16)
            if not chunk:
                raise EOFError
            *lines, self.buffer = (self.buffer + chunk).split(b"\n")
            rows += [json.loads(line) for line in lines]

    def write(self, row: dict[str, Any]) -> None:
        self.end.sendall(json.dumps(row, separators=(",", ":")).encode() + b"\n")


def build_core(spec: dict[str, Any]) -> Core:
    """The engine that `spec` names, with its weights loaded."""
    kind = spec["kind"]
    if kind == "scripted":
        from timechat.engine.fake import ScriptedCore

        return ScriptedCore()
    from timechat.model.load import Source

    adapter = Path(spec["adapter"]) if spec.get("adapter") else None
    source = Source(spec["name"], Path(spec["folder"]), adapter)
    if kind == "torch":
        from timechat.engine.batch import BatchCore
        from timechat.model.adapt import merge
        from timechat.model.load import load

        loaded = load(source)
        if spec.get("fold", True):
            merge(loaded.model)
        return BatchCore(loaded.model)
    if kind == "openvino":
        from timechat.engine.openvino import OpenVinoCore, compiled

        folder = compiled(source, spec["digest"], spec["bits"], Path(spec["cache"]))
        return OpenVinoCore(folder, spec.get("precision"))
    if kind == "llama":
        from timechat.engine.llama import LlamaCore
        from timechat.model.load import load_tokenizer

        return LlamaCore(Path(spec["file"]), load_tokenizer(adapter or source.folder))
    raise TimeChatError(f"no engine of the kind {kind!r}")


def serve(end: socket.socket) -> None:
    """Load what the first line names, then step until the parent leaves."""
    lines = _Lines(end)
    first, *rest = lines.read(wait=True)
    try:
        core = build_core(first["load"])
    except Exception as error:  # whatever a runtime or a model file throws, the parent is told
        lines.write({"refused": f"{error}" or repr(error)})
        return
    lines.write({"ready": asdict(core.capabilities)})
    while True:
        for row in rest or lines.read(wait=not core.busy):
            _obey(core, row, lines)
        rest = []
        if core.busy:
            started = time.perf_counter()
            deltas = core.step()
            if deltas:
                took = time.perf_counter() - started
                rows = [encode_delta(key, delta) for key, delta in deltas]
                lines.write({"deltas": rows, "step_s": round(took, 6)})


def _obey(core: Core, row: dict[str, Any], lines: _Lines) -> None:
    if "cancel" in row:
        core.cancel(row["cancel"])
        lines.write({"deltas": [encode_delta(row["cancel"], Delta(None, Ending.CANCELLED))]})
        return
    key = row["submit"]
    try:
        core.add(key, decode_request(row["request"]))
    except Exception as error:  # one bad request must not end the others
        misfit = isinstance(error, SchemaError)
        failed = Delta(None, Ending.FAILED, detail=str(error), is_misfit=misfit)
        lines.write({"deltas": [encode_delta(key, failed)]})


def main() -> None:
    import signal

    die_with_parent()  # its end of the socket closes too, but who computes does not look
    # Ctrl-C in a terminal reaches the whole group; the parent decides what ends when.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end = socket.socket(fileno=int(sys.argv[1]))
    try:
        serve(end)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)  # nothing to save; a native runtime may take seconds to tear itself down


if __name__ == "__main__":
    main()
