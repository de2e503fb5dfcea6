"""Learning through the server: begin, watch, switch without dropping an answer, and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from serve.conftest import Site
from serve.studio.story import RIGHT, WRONG, build_story
from timechat.serve.follow import Follower
from timechat.stages.runs.versions import in_use, take_offered

SAID = {
    "conversation": "c1", "model": "shop", "verdict": "correct", "value": RIGHT, "answer": WRONG,
    "prompt": [{"role": "user", "content": "When do you open?"}],
    "others": ["What time do you open?"], "fact": "9:30",
}  # fmt: skip


async def act(client: httpx.AsyncClient, action: str, expected: int = 200) -> dict[str, Any]:
    body = {"model": "shop", "action": action}
    response = await client.post("/studio/learn", json=body)
    assert response.status_code == expected, response.text
    return response.json()


async def look(client: httpx.AsyncClient) -> dict[str, Any]:
    return (await client.get("/studio/learn?model=shop")).json()


async def until(
    client: httpx.AsyncClient, holds: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while not holds(told := await look(client)):
        assert time.monotonic() < deadline, told
        await asyncio.sleep(0.02)
    return told


async def ask(client: httpx.AsyncClient) -> str:
    body = {"model": "shop", "messages": [{"role": "user", "content": "When do you open?"}]}
    answer = await client.post("/v1/chat/completions", json=body)
    return answer.json()["choices"][0]["message"]["content"]


def test_the_whole_story_over_http(tmp_path: Path) -> None:
    site, run = build_story(tmp_path, step_s=0.05)

    async def story(client: httpx.AsyncClient) -> None:
        assert await ask(client) == WRONG
        assert (await look(client))["corrections"] == 0
        assert (await client.post("/studio/corrections", json=SAID)).status_code == 201
        assert (await look(client))["corrections"] == 1
        assert (await act(client, "start"))["state"]["running"]
        told = await until(client, lambda t: (t["state"]["progress"] or {}).get("done", 0) > 0)
        assert told["state"]["progress"]["doing"] == "learning"
        assert await ask(client) == WRONG, "what answers stays while it learns"
        told = await until(client, lambda t: not t["state"]["running"])
        assert told["offered"] == 1
        assert told["versions"][0]["sets"]["earlier"]["verdict"] == "kept"
        assert await ask(client) == WRONG, "an offer is no switch"
        assert (await act(client, "switch"))["in_use"] == 1
        assert await ask(client) == RIGHT
        assert (await act(client, "back"))["in_use"] is None
        assert await ask(client) == WRONG
        assert (await act(client, "switch"))["in_use"] == 1

    site.run(story)
    assert in_use(run).startswith("learned/")


def test_what_was_refused_cannot_be_switched_to(tmp_path: Path) -> None:
    site, _ = build_story(tmp_path, "refused", step_s=0.0)

    async def story(client: httpx.AsyncClient) -> None:
        await client.post("/studio/corrections", json=SAID)
        await act(client, "start")
        told = await until(client, lambda t: bool(t["versions"]) and not t["state"]["running"])
        assert told["offered"] is None
        assert told["versions"][0]["reasons"]
        assert "no version to take" in (await act(client, "switch", 400))["error"]["message"]
        assert await ask(client) == WRONG

    site.run(story)


def test_answers_under_way_end_on_the_version_that_began_them(tmp_path: Path) -> None:
    long = (" ".join(["old"] * 40), "new")
    site, _ = build_story(tmp_path, step_s=0.0, interval_s=0.02, answers=long)

    async def story(client: httpx.AsyncClient) -> None:
        await client.post("/studio/corrections", json=SAID)
        await act(client, "start")
        await until(client, lambda t: t["offered"] == 1)
        running = [asyncio.create_task(ask(client)) for _ in range(5)]
        await asyncio.sleep(0.1)
        await act(client, "switch")
        assert await ask(client) == "new"
        assert await asyncio.gather(*running) == [long[0]] * 5

    site.run(story)


def test_a_server_follows_the_link_that_the_command_moves(tmp_path: Path) -> None:
    site, run = build_story(tmp_path, step_s=0.0)

    async def story(client: httpx.AsyncClient) -> None:
        await client.post("/studio/corrections", json=SAID)
        await act(client, "start")
        await until(client, lambda t: t["offered"] == 1)
        follower: Follower = site.app.state.follower
        following = asyncio.create_task(follower.follow())
        await asyncio.to_thread(take_offered, run)
        deadline = time.monotonic() + 10
        while await ask(client) != RIGHT:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        following.cancel()

    site.run(story)


def test_a_version_that_cannot_be_loaded_changes_nothing(tmp_path: Path) -> None:
    site, run = build_story(tmp_path, step_s=0.0)
    from timechat.errors import ModelError

    async def story(client: httpx.AsyncClient) -> None:
        await client.post("/studio/corrections", json=SAID)
        await act(client, "start")
        await until(client, lambda t: t["offered"] == 1)

        def broken(*_: object) -> Any:
            raise ModelError("its weights are gone")

        site.app.state.follower.open = broken
        refused = await act(client, "switch", 500)
        assert "answers as before" in refused["error"]["message"]
        assert await ask(client) == WRONG

    site.run(story)
    assert in_use(run).startswith("checkpoints/"), "the link leads to what answers"


def test_two_lessons_of_one_run_are_not_begun_and_a_stopped_one_is_over(tmp_path: Path) -> None:
    site, _ = build_story(tmp_path, step_s=5.0)

    async def story(client: httpx.AsyncClient) -> None:
        await client.post("/studio/corrections", json=SAID)
        await act(client, "start")
        assert "learning already" in (await act(client, "start", 409))["error"]["message"]
        await act(client, "stop")
        told = await until(client, lambda t: not t["state"]["running"])
        assert told["versions"] == []

    site.run(story)


def test_a_lesson_that_fails_says_why(tmp_path: Path) -> None:
    site, _ = build_story(tmp_path)
    site.app.state.desk.lessons.command = lambda run, seed: [
        "sh", "-c", "echo 'error: the disk is full' >&2; exit 2",
    ]  # fmt: skip

    async def story(client: httpx.AsyncClient) -> None:
        await client.post("/studio/corrections", json=SAID)
        await act(client, "start")
        told = await until(client, lambda t: not t["state"]["running"])
        assert told["state"]["fault"] == "the disk is full"

    site.run(story)


def test_the_end_of_the_server_ends_its_lessons(tmp_path: Path) -> None:
    site, _ = build_story(tmp_path, step_s=30.0)

    async def story(client: httpx.AsyncClient) -> None:
        await client.post("/studio/corrections", json=SAID)
        await act(client, "start")
        lessons = site.app.state.desk.lessons
        (child,) = lessons._children.values()
        await asyncio.to_thread(lessons.close)
        assert child.returncode is not None

    site.run(story)


def test_a_model_that_is_no_run_cannot_learn_and_a_fact_must_be_in_the_answer(
    studio: Site, tmp_path: Path
) -> None:
    assert "is no run" in studio.ask("GET", "/studio/learn?model=tiny").json()["error"]["message"]
    wrong = {**SAID, "model": "tiny", "fact": "10:30"}
    refused = studio.ask("POST", "/studio/corrections", json=wrong)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "fact"
