"""Answers that end early: interrupted, dropped by the thousand, or with their engine killed."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import time
from typing import Any

import httpx
import psutil
import pytest

from serve.conftest import ANSWER, build_responder, build_site, listening, says
from timechat.engine.fake import FakeEngine
from timechat.engine.process import ProcessEngine
from timechat.engine.protocol import Engine
from timechat.serve.registry import Served

BODY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
CHAT = "/v1/chat/completions"
STREAM = {**BODY, "stream": True}


def test_the_old_stream_of_a_conversation_ends_within_200_ms_with_what_it_delivered() -> None:
    site = build_site(FakeEngine(says("x" * 4000), interval_s=0.01))
    named = {"x-conversation-id": "c1"}
    took: list[float] = []

    async def talk(client: httpx.AsyncClient) -> None:
        def ask(**fields: Any) -> Any:
            return client.post(CHAT, json={**STREAM, **fields}, headers=named)

        for _ in range(5):
            old = asyncio.create_task(ask())
            while not site.engine.running:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)
            asked = time.monotonic()
            new = asyncio.create_task(ask(max_tokens=1))
            rows = (await old).text.strip().split("\n\n")
            took.append(time.monotonic() - asked)
            assert rows.pop() == "data: [DONE]"
            *said, last = [json.loads(row.removeprefix("data: ")) for row in rows]
            assert last["notice"] == "interrupted"
            assert 0 < len(said) < 100
            assert (await new).status_code == 200

    site.run(talk)
    # A neighbour may take the processor at any one time; the server itself is not slow.
    assert min(took) < 0.2
    assert len(site.engine.cancelled) == 5
    assert not site.app.state.conversations._running


@pytest.mark.slow
def test_a_thousand_connections_opened_and_dropped_leave_memory_and_files_as_they_were() -> None:
    site = build_site(FakeEngine(says("x" * 4000), interval_s=0.005))
    process = psutil.Process()

    async def drop(port: int, number: int) -> None:
        """Leave before asking, while asking, or while listening, in turn."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps(STREAM).encode()
        head = b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n" % (
            CHAT.encode()
        )
        asked = head + b"content-length: %d\r\n\r\n" % len(body) + body
        if number % 3:
            writer.write(asked[: len(asked) // 2] if number % 3 == 1 else asked)
            await writer.drain()
        if number % 3 == 2:
            await reader.readuntil(b"data: ")
        writer.transport.abort()

    def rounds(port: int, count: int) -> tuple[int, int]:
        async def run() -> None:
            for start in range(0, count, 20):
                await asyncio.gather(*(drop(port, start + n) for n in range(20)))

        asyncio.run(run())
        deadline = time.monotonic() + 60
        while site.engine.running or site.app.state.running:
            assert time.monotonic() < deadline, "answers still run that nobody reads"
            time.sleep(0.05)
        time.sleep(0.5)
        gc.collect()
        return process.memory_info().rss, process.num_fds()

    with listening(site) as address:
        port = int(address.rpartition(":")[2])
        before, files = rounds(port, 400)  # what is allocated once is allocated now
        after, still = rounds(port, 1000)
        print(f"memory {before >> 20} to {after >> 20} MiB, files {files} to {still}")
        assert still <= files + 2
        assert after - before < 8 << 20
        answer = httpx.post(address + CHAT, json={**BODY, "max_tokens": 1}, timeout=60)
        assert answer.status_code == 200
    assert len(site.engine.cancelled) > 400


def test_an_engine_killed_mid_answer_is_an_error_event_within_a_second_and_others_go_on() -> None:
    site = build_site(FakeEngine(says(ANSWER * 10), interval_s=0.01))
    child = ProcessEngine({"kind": "scripted", "name": "killed", "folder": "", "adapter": None})
    killed = build_responder(child)  # type: ignore[arg-type]

    async def talk(client: httpx.AsyncClient) -> None:
        await site.registry.add(Served("killed", killed))
        # A prompt that begins with token 13 is answered slowly (`ScriptedCore`).
        slow = {"model": "killed", "prompt": [13, 1], "max_tokens": 400, "stream": True}
        broken = asyncio.create_task(client.post("/v1/completions", json=slow))
        untouched = asyncio.create_task(client.post(CHAT, json=STREAM))
        engine: Engine = child
        while not (engine.running and site.engine.running):
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.2)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        struck = time.monotonic()
        rows = (await broken).text.strip().split("\n\n")
        assert time.monotonic() - struck < 1.0
        assert json.loads(rows[-1].removeprefix("data: "))["error"]["code"] == "engine_unavailable"
        other = await untouched
        assert other.text.endswith("data: [DONE]\n\n")
        async with asyncio.timeout(60):
            while not child.ready:
                await asyncio.sleep(0.02)
        again = await client.post("/v1/completions", json={**slow, "max_tokens": 3})
        assert again.text.endswith("data: [DONE]\n\n")
        await site.registry.close(1.0)

    site.run(talk)
