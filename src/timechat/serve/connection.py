"""A connection's patience: who sends or reads a drop at a time must not hold a place for ever.

uvicorn waits for a request's header, and for a reader that has stopped reading, as long as either
likes. Here each has so many seconds, and connections beyond what files can be opened for are turned
away with a word. What a whole body may take is the guard's, which can answer.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from typing import Any

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

# From a connection's opening, or the first byte of a request, to the end of its header.
HEADER_S = 20.0
# For a client that reads nothing although there is something to read.
STALL_S = 30.0
# For a client that still sends what has been refused, so that it may see the refusal.
LINGER_S = 5.0
# The share of the files a process may open that clients may take; engines and ledgers need some.
SHARE = 0.75
CROWDED = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
    b"connection: close\r\n\r\n"
    b'{"error": {"message": "too many connections are open", "type": "overloaded",'
    b' "param": null, "code": "too_many_connections"}}'
)
TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def _affordable() -> int:
    """How many connections this process can open files for."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if most == resource.RLIM_INFINITY else int(most * SHARE)


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 with bounds on waiting. The bounds are attributes, so that tests can lower them."""

    header_s = HEADER_S
    stall_s = STALL_S
    linger_s = LINGER_S
    most = _affordable()

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._sending: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.write(CROWDED)
            transport.close()
            return
        self._sending = self.loop.call_later(self.header_s, self._too_slow)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return  # refused as one too many
        super().data_received(data)
        self._time_header()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.SEND_BODY:  # refused, and sent on regardless
            self._stop_sending()
            self._sending = self.loop.call_later(self.linger_s, self.transport.close)
        else:
            self._time_header()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reading is None:
            self._reading = self.loop.call_later(self.stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_sending()
        self._stop_reading()
        super().connection_lost(exc)

    def _time_header(self) -> None:
        """Run the clock while a header has begun and not ended."""
        theirs = self.conn.their_state
        if theirs is h11.IDLE and self.conn.trailing_data[0]:
            if self._sending is None:
                self._sending = self.loop.call_later(self.header_s, self._too_slow)
        elif theirs is not h11.SEND_BODY or not self.cycle.response_complete:
            self._stop_sending()

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(TOO_SLOW)
            self.transport.close()

    def _stop_sending(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
