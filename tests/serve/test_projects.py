"""Two projects on one server: by no route, with no id, does one find what is the other's.

The routes come from the server's own schema, so that one which is added later is probed too: a
route that takes a body stands in `BODIES`, or the test fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI

from serve import tuning_site
from serve.tuning_site import Place, finish, rows, upload

place, client = tuning_site.place, tuning_site.client

PERSON = {"model": "ID", "annotator": "eve"}
SAID = {"model": "ID", "conversation": "c", "author": "eve", "prompt": [
    {"role": "user", "content": "Hi"}
]}  # fmt: skip
ASKED = [{"role": "user", "content": "Hi"}]
# A body that would do for the owner, with ID where one can be named.
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/v1/uploads/{upload}/parts"): {"files": {"data": b"x"}},
    ("POST", "/v1/uploads/{upload}/complete"): {"json": {"part_ids": []}},
    ("PUT", "/studio/conversations/{chat_id}"): {"json": {"title": "stolen", "turns": []}},
    ("POST", "/v1/chat/completions"): {"json": {"model": "ID", "messages": ASKED}},
    ("POST", "/v1/completions"): {"json": {"model": "ID", "prompt": "Hi"}},
    ("POST", "/v1/fine_tuning/jobs"): {"json": {"model": "ID", "training_file": "ID"}},
    ("POST", "/studio/models"): {"json": {"model": "ID", "step": 2}},
    ("POST", "/studio/corrections"): {"json": {**SAID, "answer": "a", "verdict": "bad"}},
    ("POST", "/studio/picks"): {
        "json": {**SAID, "answers": ["a", "b"], "origins": ["x", "y"], "picked": 0}
    },
    ("POST", "/studio/learn"): {"json": {"model": "ID", "action": "start"}},
    ("POST", "/studio/queue/claim"): {"json": PERSON},
    ("POST", "/studio/queue/undo"): {"json": PERSON},
    ("POST", "/studio/queue/answer"): {"json": {**PERSON, "item": 1, "verdict": "good"}},
}
# Bodies without a name of anything that a project owns.
NAMELESS = {("POST", "/v1/files"), ("POST", "/v1/uploads")}


def filled(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return {key: filled(inner, name) for key, inner in value.items()}
    return name if value == "ID" else value


@pytest.fixture(scope="module")
def owned(place: Place) -> dict[str, str]:
    """One of everything that the project alpha can own."""
    with place.client() as client:
        file = upload(client)
        job = finish(client, client.fine_tuning.jobs.create(model="tiny", training_file=file).id)
        point = client.fine_tuning.jobs.checkpoints.list(job.id).data[0]
        event = client.fine_tuning.jobs.list_events(job.id).data[0]
        large = client.uploads.create(
            filename="x", bytes=5, mime_type="text/jsonl", purpose="fine-tune"
        )
        part = client.uploads.parts.create(large.id, data=b"123")
        said = client.chat.completions.create(model=job.fine_tuned_model, messages=ASKED)  # type: ignore[arg-type]
        assert said.choices[0].message.content
    with httpx.Client(headers={"authorization": "Bearer key-a"}, base_url=place.url) as mine:
        body = {"title": "my secret", "turns": []}
        assert mine.put("/studio/conversations/chat-of-alpha", json=body).status_code == 204
    return {
        "file": file, "job": job.id, "model": job.fine_tuned_model, "event": event.id,
        "point": point.id, "step": point.fine_tuned_model_checkpoint, "upload": large.id,
        "part": part.id, "curve": job.result_files[0], "report": job.result_files[1],
        "chat": "chat-of-alpha",
    }  # fmt: skip


@pytest.fixture
def thief(place: Place) -> Iterator[httpx.Client]:
    headers = {"authorization": "Bearer key-b"}
    with httpx.Client(headers=headers, base_url=place.url) as made:
        yield made


def routes(place: Place) -> Iterator[tuple[str, str, bool, list[str]]]:
    """Method, path, whether it takes a body, and the queries it needs, of everything that is
    served; PUT, which makes what it names, comes last."""
    found = [
        (
            method.upper(),
            path,
            "requestBody" in told,
            [
                one["name"]
                for one in told.get("parameters", [])
                if one["in"] == "query" and one["required"]
            ],
        )
        for path, methods in place.site.app.openapi()["paths"].items()
        for method, told in methods.items()
    ]
    return iter(sorted(found, key=lambda route: route[0] == "PUT"))


def test_no_route_gives_one_project_what_is_the_others(
    place: Place, owned: dict[str, str], thief: httpx.Client
) -> None:
    probes = 0
    for method, path, takes_body, queries in routes(place):
        if takes_body and (method, path) in NAMELESS:
            continue
        assert not takes_body or (method, path) in BODIES, f"add {method} {path} to the probes"
        if "{" not in path and not takes_body and not queries:
            continue  # a list: below
        for name in owned.values():
            start, _, end = path.partition("{")
            url = start + name + end.partition("}")[2] if end else path
            body = filled(BODIES.get((method, path), {}), name)
            asked = dict.fromkeys(queries, name)
            status = thief.request(method, url, params=asked, **body).status_code
            if method == "PUT":  # the thief's own conversation may bear the same name
                assert status in (204, 400), (method, url, status)
                thief.delete(url)
            else:
                assert status == 404, (method, url, status)
            probes += 1
    assert probes > 200


def test_no_list_shows_or_goes_on_after_what_is_the_others(
    place: Place, owned: dict[str, str], thief: httpx.Client
) -> None:
    for method, path, *_ in routes(place):
        if method != "GET" or "{" in path:
            continue
        shown = thief.get(path).text
        assert not [name for name in owned.values() if name in shown], path
        assert "my secret" not in shown
    for path, name in (("/v1/files", owned["file"]), ("/v1/fine_tuning/jobs", owned["job"])):
        assert thief.get(path, params={"after": name}).status_code == 400


def test_what_is_named_beside_ones_own_is_not_found_either(
    place: Place, owned: dict[str, str], thief: httpx.Client
) -> None:
    with place.client("key-b") as client:
        own = upload(client)
        job = finish(client, client.fine_tuning.jobs.create(model="tiny", training_file=own).id)
        made = client.uploads.create(
            filename="x", bytes=3, mime_type="text/jsonl", purpose="fine-tune"
        )
    stolen = [
        thief.get(f"/v1/fine_tuning/jobs/{job.id}/events", params={"after": owned["event"]}),
        thief.get(f"/v1/fine_tuning/jobs/{job.id}/checkpoints", params={"after": owned["point"]}),
        thief.post(f"/v1/uploads/{made.id}/complete", json={"part_ids": [owned["part"]]}),
        thief.post(
            "/v1/fine_tuning/jobs",
            json={"model": "tiny", "training_file": own, "validation_file": owned["file"]},
        ),
    ]
    assert [answer.status_code for answer in stolen] == [400] * 4
    for answer in stolen:  # as for a name that was never given
        assert "key-a" not in answer.text
        assert "alpha" not in answer.text


def test_the_owner_still_has_everything(place: Place, owned: dict[str, str]) -> None:
    with place.client() as client:
        assert client.files.content(owned["file"]).read() == rows()
        assert client.fine_tuning.jobs.retrieve(owned["job"]).status == "succeeded"
        assert client.models.retrieve(owned["model"]).id == owned["model"]
        assert client.uploads.cancel(owned["upload"]).status == "cancelled"
    with httpx.Client(headers={"authorization": "Bearer key-a"}, base_url=place.url) as mine:
        kept = mine.get("/studio/conversations/chat-of-alpha").json()
        assert kept["title"] == "my secret"


def test_an_error_tells_nothing_of_what_there_is(
    place: Place, owned: dict[str, str], thief: httpx.Client
) -> None:
    for path, name in (("/v1/files/", "file"), ("/v1/fine_tuning/jobs/", "job"),
                       ("/v1/models/", "model")):  # fmt: skip
        real = thief.get(path + owned[name]).text.replace(owned[name], "X")
        made_up = owned[name][:-4] + "0000"
        assert real == thief.get(path + made_up).text.replace(made_up, "X")


def test_the_probes_would_succeed_for_the_owner(
    client: OpenAI, place: Place, owned: dict[str, str]
) -> None:
    assert client.files.retrieve(owned["curve"]).purpose == "fine-tune-results"
    said = client.chat.completions.create(model=owned["step"], messages=ASKED)  # type: ignore[arg-type]
    assert said.choices[0].message.content
