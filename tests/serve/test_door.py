"""Who may come in: keys, Host, Origin, and the size of what they carry."""

from __future__ import annotations

import pytest
from fastapi.routing import APIRoute

from serve.conftest import build_site
from timechat.errors import RecipeError
from timechat.serve.app import create_app
from timechat.serve.guard import PUBLIC
from timechat.serve.keys import Keys
from timechat.serve.registry import Registry
from timechat.serve.settings import Limits, Settings


def paths() -> list[tuple[str, str]]:
    """Every route of the app, the schema included, with a value for each parameter."""
    found = [("GET", "/openapi.json"), ("GET", "/nowhere")]
    for route in build_site().app.routes:
        if isinstance(route, APIRoute):
            path = route.path.replace("{name:path}", "tiny")
            found += [(method, path) for method in sorted(route.methods)]
    return found


@pytest.mark.parametrize(("method", "path"), paths())
def test_with_a_key_set_every_route_but_health_refuses_without_one(method: str, path: str) -> None:
    site = build_site(keys=Keys(["secret"]))
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"x-api-key": "secret"},
                    {"Authorization": "Basic secret"}, {"Authorization": "Bearer "}):  # fmt: skip
        status = site.ask(method, path, headers=headers).status_code
        assert (status == 200) if path in PUBLIC else (status == 401), headers


@pytest.mark.parametrize(("method", "path"), paths())
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "10.0.0.1", "", "a@b"]
)
def test_a_rebound_name_is_refused_on_every_route(method: str, path: str, host: str) -> None:
    assert build_site().ask(method, path, headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1"])
def test_loopback_names_are_known_on_any_port(host: str) -> None:
    assert build_site().ask("GET", "/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:9"])
def test_a_foreign_page_is_refused_and_gets_no_cors_headers(origin: str) -> None:
    for method, path in paths():
        response = build_site().ask(method, path, headers={"Origin": origin})
        assert response.status_code == 403
        assert "access-control-allow-origin" not in response.headers


def test_the_own_page_and_named_origins_may_call() -> None:
    site = build_site(settings=Settings(origins=("https://app.example",)))
    assert site.ask("GET", "/v1/models", headers={"Origin": "http://localhost"}).status_code == 200
    named = {"Origin": "https://app.example"}
    answer = site.ask("GET", "/v1/models", headers=named)
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    asks = {**named, "Access-Control-Request-Method": "POST"}
    assert site.ask("OPTIONS", "/v1/chat/completions", headers=asks).status_code == 204


def test_on_loopback_any_authorization_is_taken_where_no_key_is_set() -> None:
    headers = {"Authorization": "Bearer whatever"}
    assert build_site().ask("GET", "/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org"])
def test_beyond_loopback_a_key_is_required(host: str) -> None:
    with pytest.raises(RecipeError, match="key is needed"):
        create_app(Registry(), Settings(host=host))
    create_app(Registry(), Settings(host=host), Keys(["k"]))


def test_keys_know_their_project_and_can_be_revoked() -> None:
    keys = Keys()
    keys.add("one", "alpha")
    keys.add("two", "beta")
    found = keys.find("one")
    assert found is not None
    assert found.project == "alpha"
    keys.revoke("one")
    assert keys.find("one") is None
    assert not keys.holds(found)
    assert keys.find("two") is not None


def test_keys_are_kept_as_hashes_only() -> None:
    assert "secret" not in repr(vars(Keys(["secret"])))


def test_a_large_or_compressed_body_is_refused() -> None:
    site = build_site(settings=Settings(limits=Limits(body_bytes=100)))
    assert site.chat(user="x" * 200).status_code == 413

    async def slowly():
        for _ in range(20):
            yield b"x" * 10

    response = site.ask("POST", "/v1/chat/completions", content=slowly())
    assert response.status_code == 413
    zipped = {"Content-Encoding": "gzip"}
    response = site.ask("POST", "/v1/chat/completions", content=b"x", headers=zipped)
    assert response.status_code == 415


def test_nesting_beyond_reason_is_a_bad_request() -> None:
    body = b'{"model":"tiny","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    headers = {"Content-Type": "application/json"}
    response = build_site().ask("POST", "/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == 400
