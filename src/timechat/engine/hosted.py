"""A responder elsewhere: any endpoint that speaks OpenAI's API, on the seam of local models.

vLLM, llama.cpp's server, another TimeChat or a paid one: the conversation goes there as it is, and
what comes back is read as a stream of strangers' bytes, with bounds. Which address and key is the
caller's matter (`stages.serving.chat`, `stages.serving.serve`).
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import httpx

from timechat.engine.admission import BusyError
from timechat.engine.calls import Call
from timechat.engine.occupancy import Occupancy
from timechat.engine.protocol import Capabilities, Ending, EngineError
from timechat.engine.responder import Ask, ContextTooLongError, Piece, Said, UnsupportedError, Usage
from timechat.errors import ModelError, UserError, nearest

# The longest event and the longest refusal that are read.
MAX_LINE = 1 << 20
MAX_CALLS = 128
CONNECT_S = 10.0
# Between two parts of an answer: a first word may wait for a queue and a long prompt.
SILENCE_S = 120.0
_ENDINGS = {"length": Ending.LENGTH}


class HostedResponder:
    """Answers by `model` at `url` (ending in `/v1`)."""

    def __init__(
        self, url: str, model: str, key: str = "", transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.url, self.model = url, model
        self._key, self._transport = key, transport
        self._client: httpx.AsyncClient | None = None
        self._window = 0
        self._draining = False
        self._occupancy = Occupancy()

    @property
    def capabilities(self) -> Capabilities:
        """All that OpenAI's API has: what the endpoint cannot do it refuses itself."""
        note = f"answers come from {self.url}"
        return Capabilities("hosted", self._window, 0, logprobs=20, schema=True, note=note)

    @property
    def ready(self) -> bool:
        return self._client is not None and not self._draining

    async def start(self) -> None:
        """Look whether the endpoint is there and has the model. Raises ModelError."""
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S),
            transport=self._transport,
            follow_redirects=False,
        )
        try:
            rows = await self._models()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            await self.stop()
            raise ModelError(f"nothing answers at {self.url}: {error or repr(error)}") from None
        except UserError:
            await self.stop()
            raise
        found = next((row for row in rows if row.get("id") == self.model), None)
        if rows and found is None:
            await self.stop()
            known = nearest(self.model, [str(row.get("id")) for row in rows])
            raise ModelError(f"{self.url} has no model {self.model!r}: {known}")
        # Ours and vLLM's names for the window.
        for name in ("context_length", "max_model_len"):
            window = (found or {}).get(name)
            self._window = window if isinstance(window, int) else self._window

    async def _models(self) -> list[dict[str, Any]]:
        """What the endpoint lists; nothing where it has no list."""
        client = self._opened()
        async with client.stream("GET", f"{self.url}/models") as response:
            content = await _bounded(response)
        if response.status_code in (401, 403):
            raise ModelError(
                f"{self.url} refuses the key: set TIMECHAT_API_KEY to one that it knows"
            )
        try:
            rows = json.loads(content)["data"] if response.status_code == 200 else []
        except (ValueError, KeyError, TypeError, RecursionError):
            return []
        return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []

    def _opened(self) -> httpx.AsyncClient:
        if self._client is None or self._draining:
            raise EngineError("the endpoint is not asked any more")
        return self._client

    async def reply(self, ask: Ask) -> AsyncGenerator[Piece]:
        client = self._opened()
        path = "chat/completions" if ask.prompt is None else "completions"
        with self._occupancy.inside():
            try:
                async with client.stream(
                    "POST", f"{self.url}/{path}", json=body_of(ask, self.model)
                ) as response:
                    if response.status_code != 200:
                        raise refusal(response, await _bounded(response), self.url)
                    async with aclosing(_pieces(response)) as pieces:
                        async for piece in pieces:
                            yield piece
            except httpx.HTTPError as error:
                raise EngineError(f"{self.url}: {error or repr(error)}") from None

    async def drain(self, deadline_s: float) -> bool:
        self._draining = True
        return await self._occupancy.emptied(deadline_s)

    async def stop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


def body_of(ask: Ask, model: str) -> dict[str, Any]:
    """The request; what was not asked for is left out, since not every server knows every field."""
    sampling = ask.sampling
    body: dict[str, Any] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": sampling.temperature,
        "seed": sampling.seed,
    }
    if ask.prompt is None:
        body["messages"] = [dict(message) for message in ask.messages]
    else:
        body["prompt"] = ask.prompt if isinstance(ask.prompt, str) else list(ask.prompt)
    if ask.logprobs is not None and ask.prompt is None:
        body |= {"logprobs": True, "top_logprobs": ask.logprobs}
    elif ask.logprobs is not None:
        raise UnsupportedError("logprobs", "log-probabilities of bare text are not passed on")
    if ask.schema is not None:
        named = {"name": "answer", "schema": json.loads(ask.schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    optional = {
        "max_tokens": ask.max_new_tokens,
        "top_p": sampling.top_p if sampling.top_p != 1.0 else None,
        "presence_penalty": sampling.presence_penalty or None,
        "frequency_penalty": sampling.frequency_penalty or None,
        "stop": list(ask.stop) or None,
        "tools": [dict(tool) for tool in ask.tools] or None,
        "truncation": "auto" if ask.shorten else None,
    }
    return body | {name: value for name, value in optional.items() if value is not None}


def refusal(response: httpx.Response, content: bytes, url: str) -> Exception:
    """What a status other than 200 means here."""
    status = response.status_code
    said, param, code = _error_of(content)
    message = f"{url} says {status}: {said}"
    if code == "context_length_exceeded":
        return ContextTooLongError(message)
    if status == 429:
        wait = response.headers.get("retry-after", "")
        seconds = float(wait) if wait.isdigit() else 1.0
        return BusyError(seconds if math.isfinite(seconds) else 1.0)
    if status in (400, 422):
        return UnsupportedError(param or "messages", message)
    return UserError(message) if 300 <= status < 500 else EngineError(message)


@dataclass
class _Answer:
    """One answer on its way: what its events have told so far."""

    usage: Usage = field(default_factory=Usage)
    ending: Ending | None = None
    calls: dict[int, list[str]] = field(default_factory=dict[int, list[str]])
    notice: str = ""

    def take(self, row: dict[str, Any]) -> tuple[str, tuple[Said, ...]]:
        """The words of one event. Raises the errors that a wrong shape raises."""
        if isinstance(row.get("usage"), dict):
            told = row["usage"]
            self.usage = Usage(int(told["prompt_tokens"]), int(told["completion_tokens"]))
        self.notice = str(row.get("notice") or "")
        choices = row.get("choices")
        if not choices:
            return "", ()
        choice = choices[0]
        finish = choice.get("finish_reason")
        if finish:
            self.ending = _ENDINGS.get(finish, Ending.STOP)
        delta = choice.get("delta") or {}
        for call in delta.get("tool_calls") or ():
            self._take_call(call)
        text = delta.get("content") if "delta" in choice else choice.get("text")
        logprobs = choice.get("logprobs") if "delta" in choice else None
        said = tuple(_said(one) for one in (logprobs or {}).get("content") or ())
        return str(text or ""), said

    def _take_call(self, call: dict[str, Any]) -> None:
        """A call comes in parts: its name first, its arguments letter by letter."""
        index = int(call.get("index", len(self.calls)))
        if not 0 <= index < MAX_CALLS:
            raise ValueError(f"call number {index}")
        name, arguments = self.calls.setdefault(index, ["", ""])
        function = call.get("function") or {}
        name += str(function.get("name") or "")
        self.calls[index] = [name, arguments + str(function.get("arguments") or "")]


async def _pieces(response: httpx.Response) -> AsyncGenerator[Piece]:
    """The answer as its events come; a stream that breaks off ends FAILED."""
    yield Piece()
    answer, done = _Answer(), False
    try:
        async with aclosing(_events(response)) as events:
            async for data in events:
                if data.startswith("[DONE]"):
                    done = True
                    break
                row: Any = json.loads(data)
                if row.get("error"):
                    said, param, _ = _error_of(data.encode())
                    if param and _is_of_the_request(row["error"]):
                        raise UnsupportedError(param, said)
                    yield Piece(ending=Ending.FAILED, usage=answer.usage, detail=said)
                    return
                text, said = answer.take(row)
                if text or said or answer.notice:
                    yield Piece(text, said, usage=answer.usage, notice=answer.notice)
    except httpx.HTTPError as error:
        yield _failed(answer, f"the connection broke: {error or repr(error)}")
        return
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        yield _failed(answer, f"what came is no chat completion: {error!r}"[:200])
        return
    if answer.ending is None or not done:
        yield _failed(answer, "the answer broke off")
        return
    calls = tuple(Call(name, text) for _, (name, text) in sorted(answer.calls.items()))
    yield Piece(calls=calls, ending=answer.ending, usage=answer.usage)


def _failed(answer: _Answer, detail: str) -> Piece:
    return Piece(ending=Ending.FAILED, usage=answer.usage, detail=detail)


async def _events(response: httpx.Response) -> AsyncGenerator[str]:
    """The data of each server-sent event. Raises ValueError for one without an end."""
    rest = b""
    async for part in response.aiter_bytes():
        *lines, rest = (rest + part).replace(b"\r\n", b"\n").split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip().decode("utf-8")
        if len(rest) > MAX_LINE:
            raise ValueError(f"an event of more than {MAX_LINE:,} bytes")


async def _bounded(response: httpx.Response) -> bytes:
    """The body, as far as it is read at all."""
    content = bytearray()
    async for part in response.aiter_bytes():
        content += part
        if len(content) > MAX_LINE:
            break
    return bytes(content[:MAX_LINE])


def _error_of(content: bytes) -> tuple[str, str, str]:
    """Message, parameter and code of an error in OpenAI's shape; else the beginning of the text."""
    try:
        found = json.loads(content)
        error = found.get("error", found)
        if isinstance(error, dict) and "message" in error:
            parts = (error.get(name) or "" for name in ("message", "param", "code"))
            said, param, code = (str(part)[:400] for part in parts)
            return said, param, code
    except (ValueError, AttributeError, RecursionError):
        pass
    return " ".join(content[:200].decode("utf-8", "replace").split()), "", ""


def _is_of_the_request(error: Any) -> bool:
    """Whether an error that came in place of an answer blames what was asked."""
    return isinstance(error, dict) and error.get("type") == "invalid_request_error"


def _said(row: dict[str, Any]) -> Said:
    top = tuple(_spelled(one) for one in row.get("top_logprobs") or ())
    return Said(*_spelled(row), top)


def _spelled(row: dict[str, Any]) -> tuple[str, bytes, float]:
    text = str(row["token"])
    given = row.get("bytes")
    return text, bytes(given) if given else text.encode("utf-8", "replace"), float(row["logprob"])
