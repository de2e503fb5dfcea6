"""The programs that people already have: LangChain, LiteLLM and `llm`, as they are installed.

Each streams, stops, calls a tool and meets an error, against our server on a real port. The
official client has its walks in `test_more_api` and `tests/e2e`.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import build_tokenizer
from engine.test_calls import HERMES, ONE, TOOL

from serve.conftest import ANSWER, build_site, listening
from timechat.engine.fake import FakeEngine
from timechat.engine.protocol import Request
from timechat.engine.scribe import ThreadScribe
from timechat.model.render import Renderer

# Their own warnings are not our claims.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
LOOK = {**TOOL, "function": {**TOOL["function"], "description": "look at a thing"}}  # type: ignore[dict-item]


def script(request: Request) -> list[int]:
    """A call where tools were given and none has answered yet, else words."""
    tokenizer = build_tokenizer()
    asked = tokenizer.decode(list(request.prompt))
    calls = "<tools>" in asked and "role: tool" not in asked and "\ntool\n" not in asked
    text = ONE if calls and "<|im_start|>tool" not in asked else ANSWER
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.fixture(autouse=True)
def _swept() -> Iterator[None]:
    """Event loops that a client left open are closed here, and not in a neighbour's test."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    site = build_site(FakeEngine(script, window=2048))
    site.responder.scribe = ThreadScribe(Renderer(build_tokenizer(HERMES)))
    with listening(site) as address:
        yield f"{address}/v1"


def test_langchain_streams_stops_calls_and_meets_errors(url: str) -> None:
    import openai
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI

    def model(**options: Any) -> ChatOpenAI:
        return ChatOpenAI(model="tiny", base_url=url, api_key="any", max_retries=0, **options)  # type: ignore[arg-type]

    whole = model().invoke("Hi")
    assert whole.content == ANSWER
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == len(ANSWER.encode())
    parts = list(model(stream_usage=True).stream("Hi"))
    assert "".join(str(part.content) for part in parts) == ANSWER
    assert len(parts) > 5
    assert model(stop=[", "]).invoke("Hi").content == ANSWER.partition(", ")[0]
    assert model(max_tokens=3).invoke("Hi").response_metadata["finish_reason"] == "length"
    bound = model().bind_tools([LOOK])
    called = bound.invoke("look")
    (call,) = called.tool_calls
    assert (call["name"], call["args"]) == ("look", {"at": "ö"})
    answered = ToolMessage("a door", tool_call_id=call["id"])
    assert bound.invoke([HumanMessage("look"), called, answered]).content == ANSWER
    (streamed,) = [c for part in bound.stream("look") for c in part.tool_call_chunks]  # type: ignore[attr-defined]
    assert json.loads(streamed["args"]) == {"at": "ö"}
    logged = model(logprobs=True, top_logprobs=2).invoke("Hi")
    assert len(logged.response_metadata["logprobs"]["content"]) == len(ANSWER.encode())
    with pytest.raises(openai.BadRequestError, match="maximum context length") as refused:
        model().invoke("x" * 4000)
    assert refused.value.code == "context_length_exceeded"


def test_langchain_and_litellm_stream_bare_text(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm
    from langchain_openai import OpenAI

    model = OpenAI(model="tiny", base_url=url, api_key="any", max_tokens=99, max_retries=0)  # type: ignore[arg-type]
    assert "".join(model.stream("Hi")) == model.invoke("Hi") == ANSWER
    parts: Any = litellm.text_completion(
        model="text-completion-openai/tiny", api_base=url, api_key="any", prompt="Hi",
        max_tokens=99, stream=True,
    )  # fmt: skip
    choices = [part.choices[0] for part in parts]
    assert "".join(choice.text or "" for choice in choices) == ANSWER
    assert choices[-1].finish_reason == "stop"


def test_litellm_streams_stops_calls_and_meets_errors(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # no network while importing
    import litellm

    def ask(text: str = "Hi", **options: Any) -> Any:
        return litellm.completion(
            model="openai/tiny", api_base=url, api_key="any", max_retries=0,
            messages=[{"role": "user", "content": text}], **options,
        )  # fmt: skip

    whole = ask()
    assert whole.choices[0].message.content == ANSWER
    assert whole.usage.completion_tokens == len(ANSWER.encode())
    parts = list(ask(stream=True, stream_options={"include_usage": True}))
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == ANSWER
    assert parts[-1].usage.completion_tokens == len(ANSWER.encode())
    assert ask(stop=[", "]).choices[0].message.content == ANSWER.partition(", ")[0]
    assert ask(max_tokens=3).choices[0].finish_reason == "length"
    choice = ask("look", tools=[LOOK]).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls[0].function.name == "look"
    with pytest.raises(litellm.ContextWindowExceededError):
        ask("x" * 4000)
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(model="openai/nope", api_base=url, api_key="any", max_retries=0,
                           messages=[{"role": "user", "content": "Hi"}])  # fmt: skip


def test_llm_streams_stops_calls_and_meets_errors(url: str, tmp_path: Path) -> None:
    models = [
        {"model_id": name, "model_name": name, "api_base": url, "supports_tools": True}
        for name in ("tiny", "nope")
    ]
    # JSON is YAML.
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "any"}
    environment.pop("PYTHONPATH", None)

    def llm(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "ignore", "-m", "llm", *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    def said(*words: str) -> str:
        done = llm(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert said("-m", "tiny", "Hi") == ANSWER
    assert said("-m", "tiny", "--no-stream", "Hi") == ANSWER
    assert said("-m", "tiny", "-o", "stop", ", ", "Hi") == ANSWER.partition(", ")[0]
    assert said("-c", "And?") == ANSWER  # the conversation goes on
    look = "def look(at: str) -> str:\n    return 'a door'\n"
    assert said("-m", "tiny", "--functions", look, "look") == ANSWER
    logged = json.loads(said("logs", "--json", "-n", "2"))
    calls = [call for row in logged for call in row.get("tool_calls") or []]
    assert [call["arguments"] for call in calls] == [{"at": "ö"}]
    refused = llm("-m", "nope", "Hi")
    assert refused.returncode != 0
    assert "does not exist here" in refused.stderr
