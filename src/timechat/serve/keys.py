"""Who may come in: API keys, each of a project, kept as hashes and compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie

DEFAULT_PROJECT = "default"
# What signing in to the pages leaves in the browser.
COOKIE = "timechat_key"


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is. `key` is the first 12 hex digits of the key's hash, or empty."""

    project: str = DEFAULT_PROJECT
    key: str = ""


class Keys:
    """A set of keys. While none was ever in it, everybody is a caller of the default project."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._given: dict[bytes, str] = {}
        self._projects: dict[bytes, str] = {}
        self._is_closed = False
        for key in keys:
            self.add(key)

    def __len__(self) -> int:
        return len(self._projects)

    def add(self, key: str, project: str = DEFAULT_PROJECT) -> None:
        self._given[_digest(key)] = project
        self._projects = {**self._projects, **self._given}
        self._is_closed = True

    def adopt(self, projects: Mapping[bytes, str]) -> None:
        """Take the keys that a ledger keeps, by their SHA-256, in place of those it kept before.

        A server whose last key is revoked stays closed.
        """
        self._projects = {**projects, **self._given}
        self._is_closed = self._is_closed or bool(projects)

    def revoke(self, key: str) -> None:
        self._given.pop(_digest(key), None)
        self._projects.pop(_digest(key), None)

    def find(self, key: str | None) -> Caller | None:
        """The caller with that key, or None. Looks at every key, so time tells nothing."""
        if not self._is_closed:
            return Caller()
        offered = _digest(key or "")
        found: bytes | None = None
        for known in self._projects:
            if hmac.compare_digest(known, offered):
                found = known
        if found is None or not key:
            return None
        return Caller(self._projects[found], found.hex()[:12])

    def holds(self, caller: Caller) -> bool:
        """Whether the caller's key is still valid (it may be revoked while an answer runs)."""
        if not self._is_closed:
            return True
        return any(known.hex()[:12] == caller.key for known in self._projects)


def credential(headers: Mapping[bytes, bytes]) -> str | None:
    """The one parser of credentials: `Authorization: Bearer KEY`, or else the pages' cookie."""
    if b"authorization" in headers:
        scheme, _, key = headers[b"authorization"].decode("latin-1").partition(" ")
        return key.strip() or None if scheme.lower() == "bearer" else None
    cookie = SimpleCookie()
    try:
        cookie.load(headers.get(b"cookie", b"").decode("latin-1"))
    except CookieError:
        return None
    return cookie[COOKIE].value or None if COOKIE in cookie else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
