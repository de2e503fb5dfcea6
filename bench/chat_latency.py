"""How soon and how steadily answers come through the API: an open loop, percentiles, never means.

    python bench/chat_latency.py [--model starter] [--seconds 60] [--rate 0.5] [--ask http://…/v1]

Starts `timechat serve MODEL` (or asks a server that runs), then measures, through HTTP:

  one       one conversation: a first turn of about 512 new prompt tokens, then following turns
  crowd     conversations that arrive by chance (Poisson) at --rate a second, whatever is running
  stop      a closed connection until the engine holds nothing (from /metrics)
  dropped   --connections asked and closed, twenty at a time: what the server's memory and open
            files were before and are after (where this program started the server)

and beside it, in turn, transformers' `generate` (--transformers), and with --gguf FILE llama.cpp in
this process and llama.cpp's own server, asked `one` and `crowd` as ours is (it comes with
`pip install "llama-cpp-python[server]"`; FILE is what `timechat export --format gguf` wrote, since
it has to hold a vocabulary). Where that server does not run, its last words stand in its place.
Timings on a machine with neighbours are worth nothing: look at `busy`, the load before the start.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from llama_server import NotRunError, check_vocabulary, llama_server

from timechat.errors import UserError

WORDS = ("tea", "river", "stone", "market", "winter", "letter", "garden", "bridge", "silver")
ANSWER_TOKENS = 128


@dataclass
class Timing:
    """One answer: seconds to the first piece, between pieces, and tokens said."""

    first_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list[float])
    tokens: int = 0
    prompt: int = 0
    text: str = ""
    error: str = ""

    @property
    def tokens_per_s(self) -> float:
        return (self.tokens - 1) / sum(self.gaps_s) if self.gaps_s else 0.0


def percentile(values: list[float], share: float) -> float:
    """The nearest rank; nan where there is nothing."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else float("nan")


def question(chance: random.Random, words: int) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(words)) + ". Tell me a long story of it."


async def ask(
    client: httpx.AsyncClient, model: str, messages: list[dict[str, str]], tokens: int
) -> Timing:
    body = {
        "model": model,
        "messages": messages,
        "max_tokens": tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    timing = Timing()
    started = last = time.perf_counter()
    async with client.stream("POST", "/chat/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            row = json.loads(line[6:])
            if "error" in row:
                timing.error = row["error"]["message"]
                break
            if row.get("usage"):
                timing.tokens = row["usage"]["completion_tokens"]
                timing.prompt = row["usage"]["prompt_tokens"]
            elif row["choices"] and (piece := row["choices"][0]["delta"].get("content")):
                now = time.perf_counter()
                if timing.text:
                    timing.gaps_s.append(now - last)
                else:
                    timing.first_s = now - started
                last = now
                timing.text += piece
    if not timing.tokens:  # llama.cpp's server counts none in a stream: each part is a token there
        timing.tokens = len(timing.gaps_s) + bool(timing.text)
    return timing


async def one(client: httpx.AsyncClient, model: str, rounds: int) -> dict[str, Any]:
    """Conversations one after the other, three turns each."""
    chance = random.Random(0)
    first: list[Timing] = []
    later: list[Timing] = []
    for _ in range(rounds):
        messages = [{"role": "user", "content": question(chance, 440)}]
        for turn in range(3):
            timing = await ask(client, model, messages, ANSWER_TOKENS)
            (later if turn else first).append(timing)
            messages += [
                {"role": "assistant", "content": timing.text},
                {"role": "user", "content": "And then?"},
            ]
    rates = [timing.tokens_per_s for timing in first + later]
    return {
        "prompt_tokens": first[0].prompt or None,  # None: the server does not count them
        "first_turn_ttft_p50_ms": _ms([t.first_s for t in first], 0.5),
        "first_turn_ttft_p95_ms": _ms([t.first_s for t in first], 0.95),
        "next_turn_ttft_p50_ms": _ms([t.first_s for t in later], 0.5),
        "next_turn_ttft_p95_ms": _ms([t.first_s for t in later], 0.95),
        "tokens_per_s_p50": round(percentile(rates, 0.5), 1),
    }


async def crowd(
    client: httpx.AsyncClient, model: str, rate: float, seconds: float
) -> dict[str, Any]:
    """Arrivals by chance that wait for nobody."""
    chance = random.Random(1)
    tasks: list[asyncio.Task[Timing]] = []
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        messages = [{"role": "user", "content": question(chance, chance.randint(20, 120))}]
        tasks.append(asyncio.create_task(ask(client, model, messages, ANSWER_TOKENS)))
        await asyncio.sleep(chance.expovariate(rate))
    timings = await asyncio.gather(*tasks)
    gaps = [gap for timing in timings for gap in timing.gaps_s]
    return {
        "requests": len(timings),
        "errors": sum(bool(timing.error) for timing in timings),
        "ttft_p50_ms": _ms([t.first_s for t in timings], 0.5),
        "ttft_p95_ms": _ms([t.first_s for t in timings], 0.95),
        "between_p50_ms": _ms(gaps, 0.5),
        "between_p95_ms": _ms(gaps, 0.95),
        "worst_stall_ms": _ms(gaps, 1.0),
    }


async def stop(client: httpx.AsyncClient, model: str, rounds: int) -> dict[str, Any]:
    """From closing the connection until nothing runs."""
    chance = random.Random(2)
    times: list[float] = []
    for _ in range(rounds):
        messages = [{"role": "user", "content": question(chance, 40)}]
        body = {"model": model, "messages": messages, "stream": True}
        async with client.stream("POST", "/chat/completions", json=body) as answer:
            lines = answer.aiter_lines()
            for _ in range(6):
                await anext(lines)
        closed = time.perf_counter()
        while await _running(client) > 0:
            await asyncio.sleep(0.002)
        times.append(time.perf_counter() - closed)
    return {"stop_p50_ms": _ms(times, 0.5), "stop_p99_ms": _ms(times, 0.99)}


async def dropped(
    client: httpx.AsyncClient, model: str, count: int, server_pid: int | None
) -> dict[str, Any]:
    """Connections that leave while their answer runs."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "stream": True}

    async def drop() -> None:
        async with client.stream("POST", "/chat/completions", json=body) as answer:
            if answer.status_code == 200:
                await anext(answer.aiter_lines())

    async def rounds(number: int) -> None:
        for _ in range(0, number, 20):
            await asyncio.gather(*(drop() for _ in range(20)))
        while await _running(client) > 0:
            await asyncio.sleep(0.05)

    await rounds(100)  # what is allocated once is allocated now
    before = _held(server_pid)
    await rounds(count)
    after = _held(server_pid)
    return {"connections": count, "mib_and_files_before": before, "mib_and_files_after": after}


def _held(pid: int | None) -> tuple[int, int] | None:
    """MiB resident and open files of a process; None where it is not ours to look at."""
    if pid is None:
        return None
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20, len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def _running(client: httpx.AsyncClient) -> float:
    text = (await client.get(str(client.base_url).replace("/v1/", "/metrics"))).text
    return sum(float(n) for n in re.findall(r"^timechat_engine_running\{.*\} (\S+)$", text, re.M))


def beside_llama(gguf: str) -> dict[str, Any]:
    """llama.cpp in this process, one conversation."""
    from llama_cpp import Llama

    model = Llama(gguf, n_ctx=2048, n_threads=os.cpu_count(), verbose=False)
    prompt = model.tokenize(question(random.Random(0), 440).encode())
    firsts: list[float] = []
    rates: list[float] = []
    for _ in range(5):
        model.reset()
        started = time.perf_counter()
        stream = iter(model.generate(prompt, temp=0.0))
        next(stream)
        first = time.perf_counter()
        for _ in range(ANSWER_TOKENS - 1):
            next(stream)
        firsts.append(first - started)
        rates.append((ANSWER_TOKENS - 1) / (time.perf_counter() - first))
    return {
        "ttft_p50_ms": _ms(firsts, 0.5),
        "tokens_per_s_p50": round(percentile(rates, 0.5), 1),
        "prompt_tokens": len(prompt),
    }


async def beside_llama_server(gguf: str, options: argparse.Namespace) -> dict[str, Any]:
    """What llama.cpp's own server does with the same questions, or why it could not be asked."""
    try:
        async with (
            llama_server(Path(gguf)) as address,
            httpx.AsyncClient(base_url=address, timeout=300) as client,
        ):
            model = (await client.get("/models")).json()["data"][0]["id"]
            await ask(client, model, [{"role": "user", "content": "Hi"}], 8)
            return {
                "one": await one(client, model, options.rounds),
                "crowd": await crowd(client, model, options.rate, options.seconds),
            }
    except NotRunError as error:
        return {"not_run": str(error)}


def beside_transformers(model: str) -> dict[str, Any]:
    """transformers' `generate`, one conversation."""
    import torch

    from timechat.model.load import load, resolve

    loaded = load(resolve(model))
    ids = loaded.tokenizer(question(random.Random(0), 440), return_tensors="pt")["input_ids"]
    assert isinstance(ids, torch.Tensor)

    def timed(tokens: int) -> float:
        started = time.perf_counter()
        generate: Any = loaded.model.generate
        generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        return time.perf_counter() - started

    timed(2)
    firsts = [timed(1) for _ in range(3)]
    wholes = [timed(ANSWER_TOKENS) for _ in range(3)]
    decode = percentile(wholes, 0.5) - percentile(firsts, 0.5)
    return {
        "ttft_p50_ms": _ms(firsts, 0.5),
        "tokens_per_s_p50": round((ANSWER_TOKENS - 1) / decode, 1),
        "prompt_tokens": int(ids.shape[1]),
    }


@asynccontextmanager
async def server(model: str, engine: str) -> AsyncGenerator[tuple[str, int]]:
    """`timechat serve` on a free port: its address and process."""
    command = [sys.executable, "-m", "timechat", "serve", model, "--port", "0", "--engine", engine]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        while line := await asyncio.to_thread(process.stderr.readline):
            print(line.rstrip(), file=sys.stderr)
            if found := re.search(r"http://\S+/v1", line):
                yield found.group(), process.pid
                return
        raise SystemExit("the server did not start")
    finally:
        process.terminate()
        process.wait()


async def measure(
    address: str, options: argparse.Namespace, server_pid: int | None = None
) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=address, timeout=120) as client:
        model = (await client.get("/models")).json()["data"][0]["id"]
        await ask(client, model, [{"role": "user", "content": "Hi"}], 8)
        return {
            "one": await one(client, model, options.rounds),
            "crowd": await crowd(client, model, options.rate, options.seconds),
            "stop": await stop(client, model, options.rounds * 4),
            "dropped": await dropped(client, model, options.connections, server_pid),
        }


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--ask", help="the address of a server that runs, ending in /v1")
    parser.add_argument("--gguf", help="a GGUF file for llama.cpp beside it")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--rate", type=float, default=0.5, help="arrivals a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--connections", type=int, default=1000, help="opened and dropped")
    parser.add_argument("--transformers", action="store_true", help="and `generate` beside it")
    options = parser.parse_args()
    if options.gguf:
        try:
            check_vocabulary(Path(options.gguf))
        except (NotRunError, UserError, OSError) as error:
            parser.error(f"--gguf: {error}")
    found: dict[str, Any] = {"busy": os.getloadavg()[0], "cores": os.cpu_count()}
    if options.ask:
        found["timechat"] = await measure(options.ask, options)
    else:
        async with server(options.model, options.engine) as (address, pid):
            found["timechat"] = await measure(address, options, pid)
    if options.gguf:
        found["llama.cpp"] = beside_llama(options.gguf)
        found["llama.cpp server"] = await beside_llama_server(options.gguf, options)
    if options.transformers:
        found["transformers"] = beside_transformers(options.model)
    for name, figures in found.items():
        print(f"{name}: {figures}", file=sys.stderr)
    print(json.dumps(found))


def _ms(seconds: list[float], share: float) -> float:
    return round(percentile(seconds, share) * 1000, 1)


if __name__ == "__main__":
    asyncio.run(main())
