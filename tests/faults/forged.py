"""Stands as `timechat ARGUMENT...`, done by a fork of the forge: forged.py SOCKET ARGUMENT...

The fork holds what this process inherited (its output, and the job's lock) and ends with it: killed
when this is killed, asked to end when this is asked.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys


def main(path: str, *arguments: str) -> None:
    connection = socket.socket(socket.AF_UNIX)
    own = connection.fileno()
    connection.connect(path)
    signal.signal(signal.SIGTERM, lambda *_: connection.send(b"t"))
    inherited = [int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2]
    locks = [number for number in inherited if number != own and _is_open(number)]
    socket.send_fds(connection, [json.dumps({"run": arguments}).encode()], [1, 2, *locks])
    said = connection.recv(1)
    if not said:
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(said[0])


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:  # the folder that was listed
        return False
    return True


if __name__ == "__main__":
    main(*sys.argv[1:])
