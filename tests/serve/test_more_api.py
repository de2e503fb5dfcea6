"""Plain completions, figures, interrupting, revoking, bounds: the rest of the API."""

from __future__ import annotations

import asyncio
import json
import time

import httpx
import pytest

from serve.conftest import ANSWER, build_site, listening, says
from timechat.engine.fake import FakeEngine
from timechat.serve.keys import Keys
from timechat.serve.registry import Served
from timechat.serve.settings import Limits, Settings

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
CHAT = "/v1/chat/completions"


def test_plain_completions_continue_each_prompt() -> None:
    site = build_site(FakeEngine(says("ok")))
    body = {"model": "tiny", "prompt": ["a", "b"], "n": 2}
    answer = site.ask("POST", "/v1/completions", json=body).json()
    assert [choice["text"] for choice in answer["choices"]] == ["ok"] * 4
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 8, "total_tokens": 10}
    streamed = site.ask("POST", "/v1/completions", json={**body, "stream": True}).text
    assert streamed.endswith("data: [DONE]\n\n")


def test_plain_completions_refuse_ids_that_are_no_tokens() -> None:
    body = {"model": "tiny", "prompt": [5, 99999]}
    response = build_site().ask("POST", "/v1/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"


def test_metrics_count_answers_and_tokens() -> None:
    site = build_site()
    site.chat()
    text = site.ask("GET", "/metrics").text
    assert 'timechat_answers_total{ending="stop",gen_ai_request_model="tiny"} 1.0' in text
    assert "gen_ai_server_time_to_first_token_seconds_count" in text
    assert "Hi" not in text


def test_a_new_message_interrupts_the_answer_that_runs_in_its_conversation() -> None:
    site = build_site(FakeEngine(says("x" * 2000), interval_s=0.005))
    with listening(site) as address, httpx.Client(base_url=address, timeout=20) as client:
        named = {"x-conversation-id": "c1"}
        body = {**BODY, "stream": True}
        with client.stream("POST", CHAT, json=body, headers=named) as old:
            lines = (line for line in old.iter_lines() if line)
            next(lines)
            next(lines)
            with httpx.Client(base_url=address, timeout=20) as other:
                asked = time.monotonic()
                short = {**BODY, "max_tokens": 1}
                assert other.post(CHAT, json=short, headers=named).status_code == 200
            *_, last, done = lines
            assert time.monotonic() - asked < 1.0
        assert done == "data: [DONE]"
        row = json.loads(last.removeprefix("data: "))
        assert row["notice"] == "interrupted"
        assert row["choices"][0]["finish_reason"] == "stop"
    assert len(site.engine.cancelled) == 1


def test_a_closed_connection_frees_the_engine_streamed_or_not() -> None:
    for stream in (True, False):
        site = build_site(FakeEngine(says("x" * 5000), interval_s=0.005))
        with listening(site) as address:
            with httpx.Client(base_url=address, timeout=0.3) as client:
                try:
                    with client.stream("POST", CHAT, json={**BODY, "stream": stream}) as answer:
                        next(answer.iter_lines())
                except httpx.TimeoutException:
                    assert not stream
            deadline = time.monotonic() + 2
            while site.engine.running:
                assert time.monotonic() < deadline, "still running"
                time.sleep(0.01)
        assert len(site.engine.cancelled) == 1


def test_a_revoked_key_ends_the_running_stream_within_a_second() -> None:
    keys = Keys(["k"])
    keys.add("other")
    site = build_site(FakeEngine(says("x" * 5000), interval_s=0.005), keys=keys)
    headers = {"Authorization": "Bearer k"}
    with (
        listening(site) as address,
        httpx.Client(base_url=address, headers=headers, timeout=20) as client,
        client.stream("POST", CHAT, json={**BODY, "stream": True}) as answer,
    ):
        lines = (line for line in answer.iter_lines() if line)
        next(lines)
        keys.revoke("k")
        revoked = time.monotonic()
        *_, last = lines
        assert time.monotonic() - revoked < 1.5
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "invalid_api_key"


def test_a_full_server_refuses_at_once_with_a_time_to_come_again() -> None:
    site = build_site(FakeEngine(says("x" * 500), interval_s=0.01, kv_tokens=200), waiting=1)

    async def crowd(client: httpx.AsyncClient) -> None:
        body = {**BODY, "max_tokens": 100}
        running = [asyncio.create_task(client.post(CHAT, json=body)) for _ in range(2)]
        while site.responder.admission.waiting < 1:
            await asyncio.sleep(0.005)
        refused = await client.post(CHAT, json=body)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.headers["x-should-retry"] == "true"
        await asyncio.gather(*running)

    site.run(crowd)


def test_one_key_cannot_take_all_places() -> None:
    limits = Limits(per_key=1)
    site = build_site(
        FakeEngine(says("x" * 500), interval_s=0.01), settings=Settings(limits=limits)
    )

    async def two(client: httpx.AsyncClient) -> None:
        first = asyncio.create_task(client.post(CHAT, json={**BODY, "max_tokens": 50}))
        while not site.engine.running:
            await asyncio.sleep(0.005)
        assert (await client.post(CHAT, json=BODY)).status_code == 429
        assert (await first).status_code == 200

    site.run(two)


def test_a_new_version_takes_over_while_the_old_one_finishes() -> None:
    site = build_site(FakeEngine(says("old" * 20), interval_s=0.005))

    async def switch(client: httpx.AsyncClient) -> None:
        running = asyncio.create_task(client.post(CHAT, json=BODY))
        while not site.engine.running:
            await asyncio.sleep(0.005)
        newer = build_site(FakeEngine(says("new"))).responder
        await site.registry.add(Served("tiny", newer, "d2"))
        fresh = (await client.post(CHAT, json=BODY)).json()
        assert fresh["choices"][0]["message"]["content"] == "new"
        assert fresh["system_fingerprint"] == "fp_d2"
        old = (await running).json()
        assert old["choices"][0]["message"]["content"] == "old" * 20
        await site.registry.close(1.0)
        assert not site.engine.ready

    site.run(switch)


def test_a_model_of_another_project_is_as_good_as_absent() -> None:
    keys = Keys()
    keys.add("a", "alpha")
    keys.add("b", "beta")
    site = build_site(keys=keys)

    async def both(client: httpx.AsyncClient) -> None:
        await site.registry.add(Served("ft:one", site.responder, "d", project="alpha"))
        for key, status in (("a", 200), ("b", 404)):
            headers = {"Authorization": f"Bearer {key}"}
            body = {**BODY, "model": "ft:one"}
            assert (await client.post(CHAT, json=body, headers=headers)).status_code == status
            assert (await client.get("/v1/models/ft:one", headers=headers)).status_code == status
            names = [
                m["id"] for m in (await client.get("/v1/models", headers=headers)).json()["data"]
            ]
            assert ("ft:one" in names) == (status == 200)

    site.run(both)


def test_the_official_client_streams_and_answers() -> None:
    import openai

    with (
        listening(build_site()) as address,
        openai.OpenAI(
            base_url=f"{address}/v1", api_key="any", _strict_response_validation=True
        ) as client,
    ):
        messages = [{"role": "user", "content": "Hi"}]
        whole = client.chat.completions.create(model="tiny", messages=messages)
        assert whole.choices[0].message.content == ANSWER
        options = {"include_usage": True}
        parts = list(
            client.chat.completions.create(
                model="tiny", messages=messages, stream=True, stream_options=options
            )
        )
        text = "".join(p.choices[0].delta.content or "" for p in parts if p.choices)
        assert text == ANSWER
        assert parts[-1].usage is not None
        assert [model.id for model in client.models.list()] == ["tiny"]
        assert client.completions.create(model="tiny", prompt="x").choices[0].text
        with pytest.raises(openai.NotFoundError) as refused:
            client.chat.completions.create(model="nope", messages=messages)
        assert refused.value.code == "model_not_found"
