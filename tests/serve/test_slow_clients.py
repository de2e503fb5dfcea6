"""Clients that send or read a drop at a time, lie about what they send, or come in crowds."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator

import pytest

from serve.conftest import build_site, listening, says
from timechat.engine.fake import FakeEngine
from timechat.serve.connection import BoundedProtocol
from timechat.serve.settings import Limits, Settings

CHAT = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
)
ASKED = json.dumps(
    {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
).encode()
HEALTH = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds for tests instead of seconds for people."""
    for name in ("header_s", "stall_s", "linger_s"):
        monkeypatch.setattr(BoundedProtocol, name, 0.3)


@pytest.fixture
def address(hasty: None) -> Iterator[tuple[str, int]]:
    limits = Limits(body_s=0.3, body_rate=1000.0)
    with listening(build_site(settings=Settings(limits=limits))) as url:
        yield "127.0.0.1", int(url.rpartition(":")[2])


def rest(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    connection.settimeout(10)
    parts: list[bytes] = []
    try:
        while part := connection.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def drip(connection: socket.socket, seconds: float = 10) -> None:
    """Send a byte now and then, until the server has had enough."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        connection.sendall(b"x")
        time.sleep(0.02)


def raw(address: tuple[str, int], sent: bytes) -> bytes:
    with socket.create_connection(address) as connection:
        connection.sendall(sent)
        return rest(connection)


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nhost: loc", HEALTH + b"GET /hea"])
def test_a_header_that_does_not_come_to_an_end_is_given_up(
    address: tuple[str, int], sent: bytes
) -> None:
    started = time.monotonic()
    assert b"408" in raw(address, sent)
    assert time.monotonic() - started < 5


def test_a_header_drop_by_drop_gets_no_more_time(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        started = time.monotonic()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            drip(connection)
    assert time.monotonic() - started < 5


def test_a_body_drop_by_drop_is_given_up_with_an_answer(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(CHAT + b"content-length: 4000\r\n\r\n")
        started = time.monotonic()
        connection.settimeout(0.02)
        answer = b""
        while b"\r\n\r\n" not in answer:
            assert time.monotonic() - started < 5
            connection.sendall(b"x")
            try:
                answer += connection.recv(4096)
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            drip(connection)
    assert time.monotonic() - started < 5


def test_a_body_that_keeps_its_pace_may_take_its_time(address: tuple[str, int]) -> None:
    body = ASKED + b" " * 2000
    with socket.create_connection(address) as connection:
        length = b"content-length: %d\r\n\r\n" % len(body)
        connection.sendall(CHAT + b"connection: close\r\n" + length)
        started = time.monotonic()
        for start in range(0, len(body), 250):
            connection.sendall(body[start : start + 250])
            time.sleep(0.06)
        assert time.monotonic() - started > 0.5  # longer than `body_s`
        assert b"HTTP/1.1 200" in rest(connection)


def test_who_does_not_read_the_answer_frees_the_engine(
    hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = BoundedProtocol.connection_made

    def shallow(self: BoundedProtocol, transport: asyncio.Transport) -> None:
        """The kernel would take megabytes on its own account before anybody had to wait."""
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        made(self, transport)

    monkeypatch.setattr(BoundedProtocol, "connection_made", shallow)
    engine = FakeEngine(says("x" * 4000), window=1 << 20)
    with listening(build_site(engine)) as url:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", int(url.rpartition(":")[2])))
        with connection:
            connection.sendall(CHAT + b"content-length: %d\r\n\r\n" % len(ASKED) + ASKED)
            deadline = time.monotonic() + 100
            while not engine.cancelled:
                assert time.monotonic() < deadline, "the answer still waits for its reader"
                time.sleep(0.02)
        assert engine.running == 0


def test_what_is_no_http_is_refused(address: tuple[str, int]) -> None:
    lies = {
        "two hosts": b"GET /health HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\n\r\n",
        "no host": b"GET /health HTTP/1.1\r\n\r\n",
        "a negative length": CHAT + b"content-length: -5\r\n\r\n",
        "two lengths": CHAT + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        "a flood of headers": HEALTH[:-2] + b"x-a: b\r\n" * 20_000 + b"\r\n",
        "an endless line": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
    }
    for name, sent in lies.items():
        assert raw(address, sent).startswith((b"HTTP/1.1 400", b"HTTP/1.1 431", b"")), name
        assert b"200 OK" not in raw(address, sent), name


def test_a_whole_address_in_the_request_line_changes_nothing(address: tuple[str, int]) -> None:
    whole = b"GET http://evil.example/health HTTP/1.1\r\n"
    sent = whole + b"connection: close\r\nhost: evil.example\r\n\r\n"
    assert b"HTTP/1.1 403" in raw(address, sent)
    upgrade = b"connection: upgrade, close\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    asked = b"GET /v1/models HTTP/1.1\r\nhost: evil.example\r\n" + upgrade + b"\r\n"
    assert b"HTTP/1.1 403" in raw(address, asked)


def test_one_connection_too_many_is_turned_away_and_the_next_taken(
    hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundedProtocol, "most", 3)
    with listening(build_site()) as url:
        place = ("127.0.0.1", int(url.rpartition(":")[2]))
        open_ = [socket.create_connection(place) for _ in range(3)]
        refused = raw(place, b"")
        assert refused.startswith(b"HTTP/1.1 503")
        assert json.loads(refused.partition(b"\r\n\r\n")[2])["error"]["type"] == "overloaded"
        for connection in open_:
            connection.close()
        deadline = time.monotonic() + 5
        while b"HTTP/1.1 200" not in raw(place, HEALTH[:-2] + b"connection: close\r\n\r\n"):
            assert time.monotonic() < deadline
