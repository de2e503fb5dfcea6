"""A process with everything imported, from which servers and their jobs' children are forked.

    python forge.py SOCKET      requests over a Unix socket, each answered by a fork of its own:
                                {"serve": [LEDGER, STATE, BASE, PORT]} answers its process id;
                                {"run": [ARGUMENT...]} is `timechat ARGUMENT...` with the file
                                descriptors that came along (see forged.py)

Importing takes seconds and a tiny job a fraction of one, so that kills by the dozen are affordable.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import torch
import zygote  # noqa: F401 - imports what a run needs
from serve.tuning_site import TuningSite, serve_forever

from timechat.cli.main import main as timechat
from timechat.evals.questions import suite
from timechat.ledger import leases
from timechat.stages.jobs import executor, process, worker
from timechat.stages.training import plan as plan_stage

FORGED = str(Path(__file__).with_name("forged.py"))


def serve(path: str, ledger: str, state: str, base: str, port: int) -> None:
    process.GRACE_S = 0.3  # a fork does not look whether its parent lives
    executor.BEAT_S = worker.LOOK_S = 0.1
    leases.LEASE_MS = 5000
    executor.MAX_ATTEMPTS = 100  # that it gives up in the end has a test of its own
    command = (sys.executable, "-S", FORGED, path)
    serve_forever(TuningSite(Path(state), ledger, command, Path(base)), port)


def run(connection: socket.socket, handles: list[int], arguments: list[str]) -> None:
    """`timechat` on `handles`; it ends with its client, whatever ended that."""
    os.dup2(handles[0], 1)
    os.dup2(handles[1], 2)

    def listen() -> None:
        while connection.recv(1):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=listen, daemon=True).start()
    torch.set_num_threads(1)
    plan_stage.machine.matrix_rate = lambda dtype: 1e11
    whole = suite._rows
    suite._rows = lambda name: whole(name)[:: max(1, len(whole(name)) // 24)]
    try:
        timechat(arguments)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except Exception:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    connection.send(bytes([status]))


def answer(path: str, connection: socket.socket, ask: dict[str, Any], handles: list[int]) -> None:
    if "serve" in ask:
        connection.send(str(os.getpid()).encode())
        connection.close()
        serve(path, *ask["serve"])
    else:
        run(connection, handles, ask["run"])


def main(path: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        message, handles, _, _ = socket.recv_fds(connection, 1 << 16, 8)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            try:
                answer(path, connection, json.loads(message), list(handles))
            except BaseException:
                traceback.print_exc()
            os._exit(70)
        connection.close()
        for handle in handles:
            os.close(handle)


if __name__ == "__main__":
    main(*sys.argv[1:])
