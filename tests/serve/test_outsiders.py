"""Requests that an outsider tries: odd but legal ones are answered, wrong ones refused by name."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pydantic
import pytest
from conftest import build_tokenizer

from serve.conftest import ANSWER, build_site, listening, says
from serve.test_chat_api import events
from timechat.engine.fake import FakeEngine
from timechat.engine.text import bytes_of

BODY = '{"model":"tiny","messages":[{"role":"user","content":"Hi"}]}'
JSON = {"content-type": "application/json"}
CHAT = "/v1/chat/completions"


def refused(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return response.json()["error"]


@pytest.mark.parametrize("escaped", ["\\ud83d", "a\\udc00b"])
def test_half_of_a_character_is_a_bad_request_wherever_it_stands(escaped: str) -> None:
    site = build_site()
    parts = f'[{{"type":"text","text":"{escaped}"}}]'
    tool = f'{{"type":"function","function":{{"name":"f","parameters":{{"x":"{escaped}"}}}}}}'
    for body in (
        BODY.replace('"Hi"', f'"{escaped}"'),
        BODY.replace('"Hi"', parts),
        BODY.replace('"model"', f'"tools":[{tool}],"model"'),
        BODY.replace('"model"', f'"stop":"{escaped}","model"'),
        BODY.replace("tiny", escaped),
        BODY.replace('"model"', f'"{escaped}":1,"model"'),
    ):
        refused(site.ask("POST", CHAT, content=body.encode(), headers=JSON))
    body = f'{{"model":"tiny","prompt":["ok","{escaped}"]}}'
    error = refused(site.ask("POST", "/v1/completions", content=body.encode(), headers=JSON))
    assert error["param"] == "prompt"
    whole = BODY.replace('"Hi"', '"\\ud83d\\ude42"')
    assert site.ask("POST", CHAT, content=whole.encode(), headers=JSON).status_code == 200


@pytest.mark.parametrize("given", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_that_is_not_sent_as_json_is_told_so(given: str | None) -> None:
    headers = {"content-type": given} if given else {}
    for path in (CHAT, "/v1/completions"):
        response = build_site().ask("POST", path, content=BODY.encode(), headers=headers)
        error = refused(response, 415)
        assert error["code"] == "unsupported_media_type"
        assert "application/json" in error["message"]


@pytest.mark.parametrize("content", [b"[]", b"null", b"3", b"", b"{", b'"x"'])
def test_a_body_that_is_no_object_is_a_bad_request(content: bytes) -> None:
    refused(build_site().ask("POST", CHAT, content=content, headers=JSON))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop": [5]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"response_format": {}}, "response_format.type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
         "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": 2**70}, "max_completion_tokens"),
        ({"seed": 2**64}, "seed"),
        ({"n": 0}, "n"),
    ],
)  # fmt: skip
def test_the_name_of_what_is_wrong_is_the_fields_and_no_types(
    fields: dict[str, Any], param: str
) -> None:
    assert refused(build_site().chat(**fields))["param"] == param


def test_prompts_of_two_kinds_are_refused_under_their_name() -> None:
    body = {"model": "tiny", "prompt": ["a", 5]}
    error = refused(build_site().ask("POST", "/v1/completions", json=body))
    assert error["param"].startswith("prompt")
    assert "str" not in error["param"]


def test_the_bytes_of_tokens_make_up_the_answer_even_where_they_cut_characters() -> None:
    site = build_site()
    content = site.chat(logprobs=True).json()["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(row["bytes"]) for row in content).decode() == ANSWER
    *rows, _ = events(site.chat(logprobs=True, stream=True))
    streamed = [
        one for row in rows for one in (row["choices"][0]["logprobs"] or {}).get("content", ())
    ]
    assert streamed == content


def test_a_byte_of_a_sentencepiece_vocabulary_is_that_byte() -> None:
    from tokenizers import Tokenizer, decoders, models

    vocab = {"a": 0, "<0xC3>": 1, "<0xB6>": 2}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.decoder = decoders.ByteFallback()
    assert b"".join(bytes_of(tokenizer, token) for token in (0, 1, 2)) == "aö".encode()


def test_every_token_of_a_byte_vocabulary_has_its_own_bytes() -> None:
    tokenizer = build_tokenizer()
    for byte in range(0x80, 0x100):
        text = bytes([0xF0, 0x9F, 0x99, 0x82]) if byte == 0xF0 else bytes([byte])
        letter = next(k for k, v in _letters().items() if v == byte)
        token = tokenizer.backend_tokenizer.token_to_id(letter)
        assert bytes_of(tokenizer.backend_tokenizer, token) == text[:1]


def _letters() -> dict[str, int]:
    from timechat.engine.text import _byte_letters

    return _byte_letters()


def test_the_same_seed_asks_the_same_of_the_engine_streamed_or_not() -> None:
    engine = FakeEngine(says("ok"))
    site = build_site(engine)
    for stream in (False, True):
        site.chat(seed=-7, temperature=1.0, stream=stream)
    whole, streamed = engine.requests
    assert whole == streamed


def test_the_official_client_under_strict_validation_walks_all_the_odd_ways() -> None:
    with (
        listening(build_site()) as address,
        openai.OpenAI(
            base_url=f"{address}/v1", api_key="x", max_retries=0, _strict_response_validation=True
        ) as client,
    ):
        messages: Any = [{"role": "user", "content": "Hi"}]

        def chat(**fields: Any) -> Any:
            return client.chat.completions.create(
                **{"model": "tiny", "messages": messages, **fields}
            )

        usage = {"include_usage": True}
        *_, last = chat(n=2, stream=True, stream_options=usage, logprobs=True, top_logprobs=2)
        assert last.usage.completion_tokens == 2 * len(ANSWER.encode())
        assert chat(stop=[], logit_bias={}, tools=[], n=None).choices[0].message.content == ANSWER
        for content in ("", "a\0b", [{"type": "text", "text": "x"}], []):
            assert chat(messages=[{"role": "user", "content": content}]).usage.prompt_tokens
        with client.chat.completions.stream(model="tiny", messages=messages) as stream:
            assert list(stream)[-1].type
        raw = client.chat.completions.with_raw_response.create(
            model="tiny", messages=messages, extra_body={"odd": 1}
        )
        assert raw.headers["x-ignored-fields"] == "odd"
        many = client.completions.create(model="tiny", prompt=["a", "b"], n=2, logprobs=3)
        assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
        for fields in ({"messages": []}, {"max_tokens": 0}, {"max_tokens": -1}, {"n": 9}):
            with pytest.raises(openai.BadRequestError):
                chat(**fields)
        for fields in ({"echo": True}, {"suffix": "x"}, {"prompt": []}, {"best_of": 2}):
            with pytest.raises(openai.BadRequestError):
                client.completions.create(**{"model": "tiny", "prompt": "a", **fields})
        huge = {"x-huge": "y" * 400_000}
        with pytest.raises((openai.APIStatusError, openai.APIConnectionError)):
            chat(extra_headers=huge)
        assert json.loads(chat().model_dump_json())["choices"]


# OpenAI's own service, as its users recorded it (openai/openai-openapi, pull request 100).
RECORDED = """data: {"id":"cmpl-8DRxiREy3SiZNrgxq9DScOdNBxwRJ","object":"text_completion",\
"created":1698216442,"choices":[{"text":"This","index":0,"logprobs":null,"finish_reason":null}],\
"model":"gpt-3.5-turbo-instruct"}

data: [DONE]

"""


def streamed_text(client: openai.OpenAI) -> list[Any]:
    usage: Any = {"include_usage": True}
    asked: Any = {"model": "tiny", "prompt": "Hi", "max_tokens": 99, "logprobs": 1}
    return list(client.completions.create(**asked, stream=True, stream_options=usage))


def test_the_official_client_streams_bare_text() -> None:
    with (
        listening(build_site()) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0) as client,
    ):
        *parts, last = streamed_text(client)
        whole = client.completions.create(model="tiny", prompt="Hi", max_tokens=99, logprobs=1)
    choices = [part.choices[0] for part in parts]
    assert "".join(choice.text for choice in choices) == whole.choices[0].text == ANSWER
    assert [choice.finish_reason for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert last.usage == whole.usage
    said = [choice.logprobs for choice in choices if choice.logprobs]
    assert whole.choices[0].logprobs is not None
    for name in ("tokens", "token_logprobs", "text_offset"):
        streamed = [one for part in said for one in getattr(part, name)]
        assert streamed == getattr(whole.choices[0].logprobs, name)


def test_strict_types_refuse_of_streamed_text_what_openais_own_service_sends_and_no_more() -> None:
    recorded = httpx.MockTransport(
        lambda _: httpx.Response(200, text=RECORDED, headers={"content-type": "text/event-stream"})
    )
    with httpx.Client(transport=recorded) as theirs, listening(build_site()) as address:
        for transport, url in ((theirs, "http://openai/v1"), (None, f"{address}/v1")):
            with (
                openai.OpenAI(
                    base_url=url, api_key="x", max_retries=0, http_client=transport,
                    _strict_response_validation=True,
                ) as client,
                pytest.raises(openai.APIResponseValidationError) as refused,
            ):  # fmt: skip
                streamed_text(client)
            assert isinstance(refused.value.__cause__, pydantic.ValidationError)
            wrong = [error["loc"] for error in refused.value.__cause__.errors()]
            assert wrong == [("choices", 0, "finish_reason")]
