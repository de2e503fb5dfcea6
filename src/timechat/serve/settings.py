"""How a server is set up: where it listens, whom it trusts, and where its limits are."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field

from timechat.errors import RecipeError

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one request and one caller. `body_bytes_of` lists other bounds by path prefix; a
    body may take `body_s` seconds and one more for each `body_rate` bytes. `requests_per_minute`
    is for each key; None is no bound."""

    body_bytes: int = 4 * MIB
    body_s: float = 20.0
    body_rate: float = 4096.0
    body_bytes_of: Mapping[str, int] = field(default_factory=dict[str, int])
    answer_tokens: int = 8192
    schema_bytes: int = 64 << 10
    schema_depth: int = 16
    seconds: float = 600.0
    waiting: int = 64
    per_key: int = 32
    requests_per_minute: int | None = None
    drain_s: float = 30.0

    def body_limit(self, path: str) -> int:
        return next(
            (size for prefix, size in self.body_bytes_of.items() if path.startswith(prefix)),
            self.body_bytes,
        )


@dataclass(frozen=True, slots=True)
class Settings:
    """`hosts` are names under which the server may be addressed beside its own; `origins` are web
    pages elsewhere whose scripts may call it."""

    host: str = "127.0.0.1"
    port: int = 8000
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)

    def check(self, num_keys: int) -> None:
        """Raises RecipeError for a server that would be open to everyone."""
        if not self.is_loopback and num_keys == 0:
            raise RecipeError(
                f"{self.host} can be reached from other machines, so a key is needed: give one"
                " with --api-key (or TIMECHAT_API_KEY), or listen on 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
