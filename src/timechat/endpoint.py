"""A client for any endpoint that speaks OpenAI's chat API: one question, one answer or one fault.

Whatever an endpoint does, the caller gets a `Reply`: with a text, or with the `fault` that kept it
from having one, after retries with limits. A fault is counted by the caller and never scored as a
wrong answer. Every answer is recorded with its date, cost in tokens and the model's own name, so
that a comparison goes on where it stopped and can be replayed offline. The key comes from the
environment and is never written anywhere. Answers come as a stream, so that the wait for the
first word is known; an endpoint that has no streams is asked without.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from timechat.conversation import Message
from timechat.errors import ModelError
from timechat.store.files import append_line, read_lines
from timechat.stream import ASKED, Streamed, read_answer

KEYS = ("TIMECHAT_API_KEY", "OPENAI_API_KEY")
MAX_BYTES = 2**20
# A stream says a word in some hundred bytes.
MAX_STREAM_BYTES = 64 * MAX_BYTES
# How an endpoint may refuse a request for the fields that ask for a stream.
NO_STREAM = frozenset({400, 404, 405, 415, 422, 501})
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Limits:
    """How long and how often to try."""

    attempts: int = 4
    seconds: float = 60.0
    pause_s: float = 1.0
    longest_pause_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, or why there is none (`fault`). `model` is the name the endpoint gave itself."""

    text: str = ""
    fault: str = ""
    model: str = ""
    ending: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    date: str = ""
    attempts: int = 1
    first_token_s: float | None = None


class _FaultError(Exception):
    """Something that went wrong once. `pause_s` is what the endpoint asked us to wait, `status`
    what it answered with where it refused."""

    def __init__(
        self, text: str, *, again: bool = True, pause_s: float | None = None, status: int = 0
    ) -> None:
        super().__init__(text)
        self.again = again
        self.pause_s = pause_s
        self.status = status


def is_address(name: str) -> bool:
    """Whether a MODEL is an endpoint's address."""
    return name.startswith(("http://", "https://"))


def parse_address(address: str) -> tuple[str, str]:
    """An endpoint's base address (`/v1` where it has no path) and its model. Raises ModelError."""
    url, _, model = address.partition("#")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    if not model or not parsed.host:
        raise ModelError(f"{address!r} names no endpoint: write http://HOST:PORT/v1#MODEL")
    base = url.rstrip("/")
    return (base if httpx.URL(base).path != "/" else f"{base}/v1"), model


def key_in_environment() -> str:
    return next((os.environ[name] for name in KEYS if os.environ.get(name)), "")


class Endpoint:
    """Answers messages through `address` (`http://host:port/v1#model`), recording into `record`.

    With `offline` only recorded answers are given and nothing is asked.
    """

    def __init__(
        self,
        address: str,
        record: Path | None = None,
        limits: Limits | None = None,
        offline: bool = False,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        base, self.model = parse_address(address)
        self.url = f"{base}/chat/completions"
        self.limits = limits or Limits()
        self.record = record
        self.offline = offline
        key = key_in_environment()
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(self.limits.seconds),
            transport=transport,
            follow_redirects=False,
        )
        self._known = _recorded(record)
        self._streams: bool | None = None  # whether it takes a request for a stream, once known

    def ask(
        self, messages: Sequence[Message], max_new_tokens: int, temperature: float = 0.0
    ) -> Reply:
        """One answer, out of the record where it was asked before. Never raises for a fault."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "seed": 0,
        }
        key = hashlib.sha256(json.dumps([self.url, body]).encode()).hexdigest()
        if key in self._known:
            return self._known[key]
        if self.offline:
            return Reply(fault="not recorded, and asking is off")
        reply = self._try(body)
        # A fault is not remembered: the next run asks again.
        if not reply.fault:
            self._known[key] = reply
            if self.record is not None:
                self.record.parent.mkdir(parents=True, exist_ok=True)
                append_line(self.record, {"key": key, **asdict(reply)})
        return reply

    def close(self) -> None:
        self._client.close()

    def _try(self, body: dict[str, Any]) -> Reply:
        fault = ""
        for attempt in range(1, self.limits.attempts + 1):
            started = time.perf_counter()
            try:
                found, first = self._post(body)
            except _FaultError as error:
                fault = str(error)
                if not error.again or attempt == self.limits.attempts:
                    return Reply(fault=fault, attempts=attempt, date=_now())
                wait = self.limits.pause_s * 2 ** (attempt - 1)
                wait = error.pause_s if error.pause_s is not None else wait
                time.sleep(min(wait, self.limits.longest_pause_s))
                continue
            whole = time.perf_counter() - started
            wait_s = None if first is None else round(first - started, 3)
            return replace(_reply(found, whole, attempt), first_token_s=wait_s)
        raise AssertionError("at least one attempt")

    def _post(self, body: dict[str, Any]) -> tuple[dict[str, Any], float | None]:
        """An answer, and when its first word came, where it came in a stream."""
        if self._streams is False:
            return self._once(body)
        try:
            found = self._once(body | ASKED)
            self._streams = True
        except _FaultError as error:
            if self._streams or error.status not in NO_STREAM:
                raise
            found = self._once(body)
            self._streams = False
        return found

    def _once(self, body: dict[str, Any]) -> tuple[dict[str, Any], float | None]:
        deadline = time.monotonic() + self.limits.seconds
        content, streamed, size = bytearray(), Streamed(time.perf_counter), 0
        try:
            with self._client.stream("POST", self.url, json=body) as response:
                kind = response.headers.get("content-type", "")
                in_events = response.status_code == 200 and kind.startswith("text/event-stream")
                most = MAX_STREAM_BYTES if in_events else MAX_BYTES
                for part in response.iter_bytes():
                    size += len(part)
                    if size > most:
                        raise _FaultError(f"the answer is longer than {most:,} bytes", again=False)
                    if time.monotonic() > deadline:
                        raise _FaultError(f"no whole answer within {self.limits.seconds:g} s")
                    if in_events:
                        streamed.take(part)
                    else:
                        content += part
                if response.status_code != 200:
                    raise _refused(response, bytes(content))
                if in_events:
                    return streamed.whole(), streamed.first
        except ValueError as error:
            raise _FaultError(str(error)) from None
        except httpx.TimeoutException:
            raise _FaultError(f"no answer within {self.limits.seconds:g} s") from None
        except httpx.HTTPError as error:
            raise _FaultError(f"{type(error).__name__}: {error}"[:200]) from None
        return _read(bytes(content)), None


def _refused(response: httpx.Response, content: bytes) -> _FaultError:
    status = response.status_code
    said = " ".join(content[:200].decode("utf-8", "replace").split())
    wait = response.headers.get("retry-after", "")
    pause = float(wait) if wait.replace(".", "", 1).isdigit() else None
    told = f"status {status}: {said}"
    return _FaultError(told, again=status in RETRIED, pause_s=pause, status=status)


def _read(content: bytes) -> dict[str, Any]:
    """The body as a chat completion with a text. Raises `_FaultError` for everything else."""
    try:
        found = read_answer(content)
    except ValueError as error:
        raise _FaultError(str(error)) from None
    try:
        text = found["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise _FaultError("the answer is no chat completion") from None
    if not isinstance(text, str):
        raise _FaultError("the answer holds no text")
    return found


def _reply(found: dict[str, Any], seconds: float, attempts: int) -> Reply:
    choice = found["choices"][0]
    usage = found.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Reply(
        text=choice["message"]["content"].encode("utf-8", "replace").decode("utf-8").strip(),
        model=str(found.get("model") or ""),
        ending=str(choice.get("finish_reason") or ""),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        seconds=round(seconds, 3),
        date=_now(),
        attempts=attempts,
    )


def names_another(asked: str, told: str) -> bool:
    """Whether an endpoint says it is another model. A dated form of the same name is the same."""
    asked, told = asked.casefold(), told.casefold()
    return bool(told) and not (told == asked or told.startswith(f"{asked}-"))


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _recorded(record: Path | None) -> dict[str, Reply]:
    if record is None or not record.is_file():
        return {}
    known: dict[str, Reply] = {}
    for row in read_lines(record):
        key = row.pop("key")
        known[key] = Reply(**row)
    return known


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
