"""An engine that grows beyond its plan: told, let finish, ended, started again."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager

import pytest
from conftest import build_model

from timechat.engine import memory
from timechat.engine.batch import BatchCore
from timechat.engine.greedy import token_bytes
from timechat.engine.process import ProcessEngine
from timechat.engine.protocol import Delta, Ending, EngineError, Request, Sampling

pytestmark = pytest.mark.skipif(
    memory.held_by(os.getpid()) is None, reason="this system does not say what a process holds"
)
MIB = 1 << 20
LEAK = [14, 1]


@asynccontextmanager
async def started(margin_mib: int, finish_s: float) -> AsyncGenerator[ProcessEngine]:
    spec = {"kind": "scripted", "name": "grows", "folder": "", "adapter": None}
    engine = ProcessEngine(spec, margin_mib * MIB, look_s=0.02, finish_s=finish_s)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def answer(engine: ProcessEngine, prompt: list[int], tokens: int) -> list[Delta]:
    async with aclosing(engine.stream(Request(prompt, Sampling(max_new_tokens=tokens)))) as deltas:
        return [delta async for delta in deltas]


async def back(engine: ProcessEngine) -> None:
    async with asyncio.timeout(60):
        while engine.starts < 2 or not engine.ready:
            await asyncio.sleep(0.01)


def test_one_that_grows_is_drained_and_started_again(caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        async with started(60, finish_s=60.0) as engine:
            running = asyncio.create_task(answer(engine, LEAK, 60))
            async with asyncio.timeout(60):
                while not engine.outgrown:
                    await asyncio.sleep(0.005)
            assert not engine.ready
            with pytest.raises(EngineError):
                await answer(engine, [1, 2], 3)
            said = await running
            assert (len(said), said[-1].ending) == (61, Ending.LENGTH)
            await back(engine)
            assert (await answer(engine, [1, 2], 3))[-1].ending is Ending.LENGTH
            assert not engine.outgrown

    with caplog.at_level(logging.WARNING, "timechat.engine"):
        asyncio.run(play())
    assert "engine grows holds" in caplog.text
    assert "were planned" in caplog.text


def test_one_that_does_not_finish_in_time_is_ended_and_its_client_told() -> None:
    async def play() -> None:
        async with started(60, finish_s=0.1) as engine:
            said = await answer(engine, LEAK, 500)
            assert said[-1].ending is Ending.FAILED
            assert said[-1].detail == "the engine's process outgrew its memory and was ended"
            await back(engine)

    asyncio.run(play())


def test_one_within_its_plan_is_left_alone() -> None:
    async def play() -> None:
        async with started(1024, finish_s=0.1) as engine:
            said = await answer(engine, LEAK, 60)
            assert said[-1].ending is Ending.LENGTH
            assert engine.starts == 1
            assert not engine.outgrown

    asyncio.run(play())


def test_the_plan_is_what_was_held_when_ready_the_cache_and_a_margin() -> None:
    ready = memory.Held(own=300 * MIB, files=100 * MIB)
    assert memory.most(ready, 600 * MIB) == 1250 * MIB + (1 << 30)


def test_what_is_held_is_read_from_the_system() -> None:
    before = memory.held_by(os.getpid())
    kept = b"x" * (64 * MIB)
    after = memory.held_by(os.getpid())
    assert before is not None
    assert after is not None
    assert after.own - before.own >= len(kept) - MIB
    assert memory.held_by(2**22 + 1) is None


def test_a_torch_engine_plans_the_bytes_that_its_cache_takes() -> None:
    model = build_model()
    core = BatchCore(model, kv_tokens=100)
    core.add(0, Request([5, 6, 7, 8], Sampling(max_new_tokens=1)))
    core.step()
    (cache,) = core._kept.values()
    held = sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))
    assert held == 4 * token_bytes(model)
    assert core.capabilities.kv_bytes == 100 * token_bytes(model)
