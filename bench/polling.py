"""What clients that ask for events cost the job that trains: 200 of them, each every 10 s.

    python bench/polling.py [--clients 200] [--every 10] [--window 15] [--pairs 8]

One `timechat serve starter --state` with one job; windows with and without the clients take turns
while it trains, in an order that is drawn anew for each pair. The figure is the ratio of the tokens
trained a second, pair by pair: whatever else the machine does meets both halves alike. The clients
run here too and cost what they cost, which people's own machines would bear.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from importlib.resources import files
from pathlib import Path
from typing import Any

PARAMETERS = {
    "n_epochs": 100, "batch_size": 2, "train.checkpoint_every": 1000, "train.validations": 1,
    "evaluate.max_questions": 4, "evaluate.max_new_tokens": 4,
}  # fmt: skip


def ask(url: str, body: Any = None, kind: str = "application/json") -> Any:
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": kind} if data else {})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def upload(url: str, rows: bytes) -> str:
    edge = "polling-bench"
    parts = [
        f'--{edge}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n',
        f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n',
    ]
    body = "".join(parts).encode() + rows + f"\r\n--{edge}--\r\n".encode()
    return ask(f"{url}/files", body, f"multipart/form-data; boundary={edge}")["id"]


async def poll(port: int, job: str, clients: int, every: float, until: float) -> list[float]:
    """The crowd, until that moment; the seconds that each answer took."""
    took: list[float] = []
    line = f"GET /v1/fine_tuning/jobs/{job}/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"

    async def one(number: int) -> None:
        await asyncio.sleep(every * number / clients)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.monotonic() < until:
            started = time.monotonic()
            writer.write(line.encode())
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert head.startswith(b"http/1.1 200"), head
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            took.append(time.monotonic() - started)
            await asyncio.sleep(max(0.0, started + every - time.monotonic()))
        writer.close()

    await asyncio.gather(*(one(number) for number in range(clients)))
    return took


def trained(log: Path) -> int:
    rows = log.read_text().splitlines()
    return sum(json.loads(row).get("tokens", 0) for row in rows if '"tokens"' in row)


def measure(port: int, job: str, log: Path, asked: argparse.Namespace) -> None:
    pace: dict[bool, list[float]] = {True: [], False: []}
    took: list[float] = []
    for _ in range(asked.pairs):
        for crowded in random.sample([True, False], 2):
            before, started = trained(log), time.monotonic()
            if crowded:
                until = started + asked.window
                took += asyncio.run(poll(port, job, asked.clients, asked.every, until))
            else:
                time.sleep(asked.window)
            pace[crowded].append((trained(log) - before) / (time.monotonic() - started))
            print(f"{'crowd' if crowded else 'alone'}: {pace[crowded][-1]:.1f} tokens/s")
    ratios = [a / b for a, b in zip(pace[True], pace[False], strict=True)]
    whole = statistics.mean(pace[True]) / statistics.mean(pace[False])
    rank = sorted(took)
    print(f"pairs: {' '.join(f'{ratio:.3f}' for ratio in ratios)}")
    print(
        f"with the crowd, beside without: median {statistics.median(ratios):.3f}, mean {whole:.3f}"
    )
    print(f"{len(took)} answers, median {1000 * statistics.median(took):.0f} ms, ", end="")
    print(f"95th percentile {1000 * rank[int(0.95 * len(rank))]:.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--every", type=float, default=10)
    parser.add_argument("--window", type=float, default=15)
    parser.add_argument("--pairs", type=int, default=8)
    asked = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    rows = (files("timechat.shipped") / "helpdesk" / "conversations.jsonl").read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        words = ["serve", "starter", "--port", str(port), "--state", str(state)]
        server = subprocess.Popen([sys.executable, "-m", "timechat", *words])
        try:
            while True:
                try:
                    file = upload(url, rows)
                    break
                except OSError:
                    time.sleep(0.5)
            body = {"model": "starter", "training_file": file, "hyperparameters": PARAMETERS}
            job = ask(f"{url}/fine_tuning/jobs", body)["id"]
            log = state / "jobs" / job / "run" / "metrics.jsonl"
            while not log.is_file() or trained(log) < 2000:
                time.sleep(1)
            measure(port, job, log, asked)
            ask(f"{url}/fine_tuning/jobs/{job}/cancel", b"")
        finally:
            server.terminate()
            server.wait(60)


if __name__ == "__main__":
    main()
