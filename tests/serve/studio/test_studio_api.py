"""What the pages ask for: conversations, corrections, the queue, and the door before them."""

from __future__ import annotations

import json
import os
import resource
import socket
import time
from pathlib import Path
from typing import Any

from serve.conftest import Site, build_site, listening
from serve.studio.conftest import with_studio
from timechat.engine.responder import Responder
from timechat.ledger.annotation import open_queue
from timechat.ledger.database import open_ledger
from timechat.serve.keys import Keys
from timechat.serve.registry import Served
from timechat.serve.studio.runs import MAX_POINTS, thinned

TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "When do you open?"},
    {
        "role": "assistant",
        "kept": 1,
        "answers": [{"model": "tiny", "content": "Never."}, {"model": "tiny", "content": "At 9."}],
    },
]


def keep(site: Site, chat_id: str = "c1", **fields: Any) -> int:
    body = {"title": "Opening", "system": "Be brief.", "turns": TURNS, **fields}
    return site.ask("PUT", f"/studio/conversations/{chat_id}", json=body).status_code


def test_a_conversation_is_kept_found_by_its_words_and_deleted(studio: Site) -> None:
    assert keep(studio) == 204
    assert keep(studio, "c2", title="Other", turns=[]) == 204
    found = studio.ask("GET", "/studio/conversations?query=NEVER 9.").json()["conversations"]
    assert found == [], "an answer that was not kept is not part of the conversation"
    found = studio.ask("GET", "/studio/conversations?query=open 9.").json()["conversations"]
    assert [row["id"] for row in found] == ["c1"]
    whole = studio.ask("GET", "/studio/conversations/c1").json()
    assert whole["turns"] == [TURNS[0], {**TURNS[1], "blind": False}]
    assert studio.ask("DELETE", "/studio/conversations/c1").status_code == 204
    assert studio.ask("GET", "/studio/conversations/c1").status_code == 404
    assert studio.ask("DELETE", "/studio/conversations/c1").status_code == 404


def test_an_exported_conversation_is_a_training_row(studio: Site) -> None:
    keep(studio)
    answer = studio.ask("GET", "/studio/conversations/c1/export")
    assert "attachment" in answer.headers["content-disposition"]
    assert json.loads(answer.text)["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "When do you open?"},
        {"role": "assistant", "content": "At 9."},
    ]


def test_a_malformed_conversation_is_refused_in_one_message(studio: Site) -> None:
    assert keep(studio, turns=[{"role": "wizard", "content": "x"}]) == 400
    assert keep(studio, turns=[{"role": "assistant", "answers": []}]) == 400
    assert keep(studio, chat_id="..%2fsecret") in (400, 404)
    beyond = [{"role": "assistant", "kept": 1, "answers": [{"model": "m", "content": "x"}]}]
    answer = studio.ask(
        "PUT", "/studio/conversations/c1", json={"title": "", "system": "", "turns": beyond}
    )
    assert answer.status_code == 400
    assert "kept" in answer.json()["error"]["message"]


def test_one_project_sees_nothing_of_another(tmp_path: Path) -> None:
    keys = Keys(["sk-one"])
    keys.add("sk-two", "second")
    site = with_studio(build_site(keys=keys), tmp_path)
    one, two = ({"Authorization": f"Bearer sk-{name}"} for name in ("one", "two"))
    body = {"title": "mine", "system": "", "turns": TURNS}
    assert site.ask("PUT", "/studio/conversations/c1", json=body, headers=one).status_code == 204
    assert site.ask("GET", "/studio/conversations/c1", headers=two).status_code == 404
    assert site.ask("DELETE", "/studio/conversations/c1", headers=two).status_code == 404
    listed = site.ask("GET", "/studio/conversations", headers=two).json()
    assert listed == {"conversations": []}
    # The same id in another project is another conversation.
    assert site.ask("PUT", "/studio/conversations/c1", json=body, headers=two).status_code == 204


def test_a_correction_lands_in_the_queue_with_its_other_wordings(
    studio: Site, tmp_path: Path
) -> None:
    body = {
        "conversation": "c1",
        "model": "tiny",
        "prompt": [{"role": "user", "content": "When do you open?"}],
        "answer": "Never.",
        "verdict": "correct",
        "value": "At nine.",
        "others": ["Opening time?"],
    }
    assert studio.ask("POST", "/studio/corrections", json=body).json() == {"added": 2}
    queue = open_queue(open_ledger(tmp_path / "ledger.db"), "corrections")
    first, second = queue.items()
    assert [a.origin for a in first.answers] == ["tiny"]
    assert second.prompt[-1].content == "Opening time?"
    assert {(j.verdict, j.value) for j in queue.judgements()} == {("corrected", "At nine.")}
    missing = studio.ask("POST", "/studio/corrections", json=body | {"value": None})
    assert missing.status_code == 400
    assert "needs value" in missing.json()["error"]["message"]


def test_a_pick_names_the_better_of_two_whatever_their_order(studio: Site, tmp_path: Path) -> None:
    body = {
        "conversation": "c1",
        "model": "tiny",
        "prompt": [{"role": "user", "content": "Hi"}],
        "answers": ["one", "two"],
        "origins": ["tiny", "base"],
        "picked": 1,
    }
    assert studio.ask("POST", "/studio/picks", json=body).status_code == 201
    queue = open_queue(open_ledger(tmp_path / "ledger.db"), "corrections")
    assert [j.verdict for j in queue.judgements()] == ["second"]


def test_ticks_go_with_the_pick_and_a_tick_that_fits_nothing_is_refused(
    studio: Site, tmp_path: Path
) -> None:
    ask = {"conversation": "c1", "model": "tiny", "origins": ["a", "b"], "picked": 0}
    body = ask | {"prompt": [{"role": "user", "content": "Hi"}], "answers": ["good", "bad"]}
    assert studio.ask("POST", "/studio/picks", json=body | {"ticks": ["clearer"]}).is_success
    queue = open_queue(open_ledger(tmp_path / "ledger.db"), "corrections", annotators=4)
    me = {"model": "tiny", "annotator": "Ada"}
    shown = studio.ask("POST", "/studio/queue/claim", json=me).json()
    assert shown["ticks"] == ["clearer", "more accurate", "more relevant", "shorter"]
    said = me | {"item": shown["item"]["id"], "verdict": "first"}
    for wrong in ({"ticks": ["clear"]}, {"ticks": ["shorter"], "verdict": "tie"}):
        refused = studio.ask("POST", "/studio/queue/answer", json=said | wrong)
        assert refused.status_code == 400
        assert "tick" in refused.json()["error"]["message"]
    studio.ask("POST", "/studio/queue/answer", json=said | {"ticks": ["shorter", "clearer"]})
    assert [j.ticks for j in queue.judgements()] == [("clearer",), ("shorter", "clearer")]


def test_the_queue_page_judges_the_item_and_not_the_screens_order(
    studio: Site, tmp_path: Path
) -> None:
    ask = {"conversation": "c1", "model": "tiny", "origins": ["a", "b"], "picked": 0}
    for i in range(6):
        prompt = [{"role": "user", "content": f"Question {i}"}]
        body = ask | {"prompt": prompt, "answers": [f"good {i}", f"bad {i}"]}
        studio.ask("POST", "/studio/picks", json=body)
    queue = open_queue(open_ledger(tmp_path / "ledger.db"), "corrections", annotators=2)
    me = {"model": "tiny", "annotator": "Ada"}
    shown = studio.ask("POST", "/studio/queue/claim", json=me).json()
    sides: set[str] = set()
    while (item := shown["item"]) is not None:
        assert "origin" not in json.dumps(item)
        side = "first" if item["answers"][0].startswith("good") else "second"
        sides.add(side)
        body = me | {"item": item["id"], "verdict": side}
        shown = studio.ask("POST", "/studio/queue/answer", json=body).json()
    assert sides == {"first", "second"}, "answers are shuffled"
    assert {j.verdict for j in queue.judgements() if j.annotator == "Ada"} == {"first"}
    agreement = studio.ask("GET", "/studio/queue/agreement?model=tiny").json()["agreement"]
    assert agreement
    again = studio.ask("POST", "/studio/queue/undo", json=me).json()
    assert again["item"] is not None


def test_pages_let_nothing_in_but_this_servers_own_files(studio: Site) -> None:
    for path in ("/", "/queue", "/runs", "/studio/static/chat.js"):
        answer = studio.ask("GET", path)
        assert answer.status_code == 200
        assert "default-src 'none'; script-src 'self'" in answer.headers["content-security-policy"]
    for name in ("..%2f..%2fapp.py", "nothing.js", ".."):
        assert studio.ask("GET", f"/studio/static/{name}").status_code == 404


def test_a_browser_without_a_key_is_refused_with_a_form_and_signs_in(locked: Site) -> None:
    refused = locked.ask("GET", "/", headers={"Accept": "text/html"})
    assert refused.status_code == 401
    assert "<form" in refused.text
    assert locked.ask("GET", "/studio/models").status_code == 401
    wrong = locked.ask("POST", "/studio/sign-in", content="key=sk-wrong")
    assert wrong.status_code == 401
    right = locked.ask("POST", "/studio/sign-in", content="key=sk-right")
    assert right.status_code == 303
    cookie = right.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    inside = locked.ask("GET", "/", headers={"Cookie": cookie.partition(";")[0]})
    assert inside.status_code == 200


def test_another_sites_page_cannot_act_with_the_cookie(locked: Site) -> None:
    headers = {"Cookie": "timechat_key=sk-right", "Origin": "https://evil.example"}
    assert locked.ask("DELETE", "/studio/conversations/c1", headers=headers).status_code == 403


def test_a_served_run_shows_its_curves_checks_and_steps(site: Site, tmp_path: Path) -> None:
    run = build_run(tmp_path / "runs" / "shop")
    build_run(tmp_path / "runs" / "older")
    with_studio(site, tmp_path)
    serve_as_run(site, run)
    models = site.ask("GET", "/studio/models").json()["models"]
    assert models == [{"name": "shop", "steps": [10, 20]}]
    listed = site.ask("GET", "/studio/runs").json()["runs"]
    assert [(row["name"], row["served"]) for row in listed] == [("older", None), ("shop", "shop")]
    shown = site.ask("GET", "/studio/runs/shop").json()
    assert shown["loss"] == [[1, 2.0], [2, 1.5]]
    assert shown["validation"] == [[2, 1.4]]
    assert shown["report"]["checks"][0]["name"] == "template"
    report = site.ask("GET", "/studio/runs/shop/report")
    assert report.headers["content-security-policy"].startswith("sandbox;")
    assert site.ask("GET", "/studio/runs/..").status_code == 404
    assert site.ask("GET", "/studio/runs/elsewhere").status_code == 404


def test_long_curves_are_thinned_evenly_and_keep_their_end() -> None:
    points = [[float(i), 0.0] for i in range(10_001)]
    short = thinned(points)
    assert len(short) <= MAX_POINTS
    assert short[-1] == points[-1]


def build_run(folder: Path) -> Path:
    """The files of a finished run, as small as they can be."""
    for step in (10, 20):
        (folder / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    (folder / "recipe.yaml").write_text("base: starter\n")
    (folder / "plan.json").write_text(
        json.dumps({"numbers": {"steps": {"value": 20, "rule": "asked for"}}})
    )
    lines = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 1.5},
        {"step": 2, "validation_loss": 1.4},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    checks = [{"name": "template", "passed": True, "figure": "all rows"}]
    report = {"verdict": "improved", "headline": "Better.", "checks": checks, "samples": []}
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "report.html").write_text("<!doctype html><title>Report</title>")
    return folder


def serve_as_run(site: Site, run: Path) -> None:
    """Let the site's scripted model answer for `run`."""
    responder: Responder = site.responder

    async def open_run() -> None:
        if not responder.ready:
            details = {"run": str(run)}
            await site.registry.add(Served(run.name, responder, "d1", details=details))

    site.open = open_run  # type: ignore[method-assign]


def test_a_thousand_opened_and_closed_pages_leave_nothing_behind(studio: Site) -> None:
    """What a page asks for when it opens, on a connection of its own that is cut at once."""
    paths = ("/", "/studio/static/chat.js", "/studio/models", "/studio/conversations?query=")

    def handles() -> int:
        return len(os.listdir("/proc/self/fd"))

    def grown() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with listening(studio) as address:
        host, port = address.removeprefix("http://").split(":")
        before = (0, 0)
        for i in range(1000):
            with socket.create_connection((host, int(port))) as line:
                request = f"GET {paths[i % 4]} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n"
                line.sendall(request.encode())
                if i % 2:  # every other page is closed before anything came
                    line.recv(1)
            if i == 200:
                before = handles(), grown()
        deadline = time.monotonic() + 10
        while handles() > before[0] + 5 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert handles() <= before[0] + 5
        assert grown() < before[1] + (32 << 10), "kilobytes"
