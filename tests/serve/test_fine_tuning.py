"""The fine-tuning API, walked with OpenAI's own client under strict validation."""

from __future__ import annotations

from collections.abc import Callable

import openai
import pytest
from openai import OpenAI

from serve import tuning_site
from serve.tuning_site import Place, finish, rows, upload
from timechat.errors import LedgerError
from timechat.ledger.keys import create_key, list_keys, revoke_key, valid_keys
from timechat.serve.app import create_app
from timechat.serve.keys import Keys
from timechat.serve.registry import Registry
from timechat.serve.settings import Settings

# The fixtures of a server whose callers may fine-tune.
place, client = tuning_site.place, tuning_site.client


def test_the_whole_walk(client: OpenAI, place: Place) -> None:
    file = client.files.create(file=("data.jsonl", rows()), purpose="fine-tune")
    assert client.files.wait_for_processing(file.id).status == "processed"
    held = upload(client)
    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=file.id,
        validation_file=held,
        suffix="walk",
        seed=42,
        metadata={"team": "support"},
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": "auto"}},
        },
    )
    assert job.status == "validating_files"
    done = finish(client, job.id)
    assert done.status == "succeeded", done.error
    assert (done.seed, done.error, done.validation_file) == (42, None, held)
    assert done.fine_tuned_model.startswith("ft:tiny:alpha:walk:")
    assert done.model_extra["plan"]["steps"] == 6
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=2))
    assert events[-1].message.startswith("Created fine-tuning job")
    assert events[0].message == "The job has successfully completed"
    assert len(events) == len({event.id for event in events}) == 17
    metrics = [event.data for event in events if event.type == "metrics"]
    assert metrics[0]["total_steps"] == 6
    points = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
    assert [point.step_number for point in points] == [6, 4, 2]
    assert points[0].metrics.full_valid_loss == pytest.approx(1 / 3)
    csv = client.files.content(done.result_files[0]).read().decode("utf-8")
    assert csv.startswith("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy")
    assert client.files.retrieve(done.result_files[0]).purpose == "fine-tune-results"

    def ask(model: str) -> str | None:
        said = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "Who?"}]
        )
        return said.choices[0].message.content

    assert ask(done.fine_tuned_model) == f"I am {done.fine_tuned_model}"
    for point in points:  # more than are loaded at once
        name = point.fine_tuned_model_checkpoint
        assert name == f"{done.fine_tuned_model}:ckpt-step-{point.step_number}"
        assert ask(name) == f"I am {name}"
    assert done.fine_tuned_model in [model.id for model in client.models.list()]
    assert client.models.retrieve(done.fine_tuned_model).id == done.fine_tuned_model
    assert client.models.delete(done.fine_tuned_model).deleted
    with pytest.raises(openai.NotFoundError):
        ask(done.fine_tuned_model)
    assert done.fine_tuned_model not in [model.id for model in client.models.list()]


def refuse(call: Callable[[], object], status: int, text: str, param: str | None = None) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        call()
    assert caught.value.status_code == status, caught.value.message
    assert text in caught.value.message
    if param is not None:
        assert caught.value.body["param"] == param  # type: ignore[index]


def test_every_refusal_is_a_status_that_clients_do_not_retry(client: OpenAI) -> None:
    create = client.fine_tuning.jobs.create
    file = upload(client)
    refuse(lambda: create(model="tiny", training_file="file-none"), 400, "exist", "training_file")
    refuse(lambda: create(model="tyni", training_file=file), 404, "tiny")
    refuse(lambda: create(model="ready-run", training_file=file), 400, "base", "model")
    refuse(
        lambda: create(model="tiny", training_file=file, validation_file="file-none"),
        400, "exist", "validation_file",
    )  # fmt: skip
    for kind in ("dpo", "reinforcement"):
        refuse(
            lambda kind=kind: create(model="tiny", training_file=file, method={"type": kind}),
            400, "supervised", "method",
        )  # fmt: skip
    for given, text in (
        ({"n_epoch": 3}, "n_epochs"),
        ({"n_epochs": -1}, "epochs"),
        ({"n_epochs": 1.5}, "whole number"),
        ({"batch_size": "8"}, "whole number"),
        ({"batch_size": True}, "whole number"),
        ({"learning_rate_multiplier": 0}, "above 0"),
        ({"adapt.rnak": 3}, "did you mean 'rank'"),
        ({"data.train": ["/etc/passwd"]}, "unknown"),
        ({"base": "/etc"}, "unknown"),
    ):
        refuse(
            lambda given=given: create(model="tiny", training_file=file, hyperparameters=given),  # type: ignore[arg-type]
            400, text, "hyperparameters",
        )  # fmt: skip
    refuse(lambda: create(model="tiny", training_file=file, suffix="a:b"), 400, "suffix")
    refuse(lambda: create(model="tiny", training_file=file, suffix="x" * 65), 400, "suffix")
    refuse(
        lambda: create(model="tiny", training_file=file, metadata={"k": "v" * 513}), 400, "metadata"
    )
    refuse(lambda: client.fine_tuning.jobs.retrieve("ftjob-none"), 404, "ftjob-none")
    refuse(lambda: client.fine_tuning.jobs.list_events("ftjob-none"), 404, "ftjob-none")
    refuse(lambda: client.models.delete("tiny"), 400, "not tuned here")
    refuse(lambda: client.models.delete("ft:tiny:alpha::0"), 404, "does not exist")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"[1, 2]\n", "Line 1 is not a dictionary"),
        (rows(3) + b"{oops\n", "Line 4 is not valid JSON"),
        (b"", "empty"),
        (b"\xff\xfe{}", "Line 1 is not valid JSON"),
        (b"[" * 100_000, "Line 1 is not valid JSON"),
    ],
)
def test_a_file_that_is_no_jsonl_is_refused_with_its_line(
    client: OpenAI, place: Place, content: bytes, text: str
) -> None:
    before = len(list(place.site.tuning.files.folder.iterdir()))
    refuse(lambda: upload(client, content), 400, text, "file")
    assert len(list(place.site.tuning.files.folder.iterdir())) == before


def test_files_are_kept_by_our_id_and_come_back_byte_for_byte(client: OpenAI, place: Place) -> None:
    name = upload(client)
    assert client.files.content(name).read() == rows()
    assert client.files.retrieve(name).filename.endswith("evil.jsonl")
    inside = place.site.tuning.files.folder.resolve()
    assert (inside / f"{name}.jsonl").is_file()
    assert not list(place.site.tuning.state.parent.glob("**/evil*"))
    refuse(lambda: client.files.create(file=("a", rows()), purpose="batch"), 400, "purpose")
    assert client.files.delete(name).deleted
    refuse(lambda: client.files.retrieve(name), 404, name)
    assert not (inside / f"{name}.jsonl").exists()


def test_files_list_in_pages_either_way(client: OpenAI) -> None:
    made = [upload(client) for _ in range(5)]
    newest = [file.id for file in client.files.list(limit=2, purpose="fine-tune")]
    assert newest[:5] == made[::-1]
    oldest = [file.id for file in client.files.list(limit=2, order="asc", purpose="fine-tune")]
    assert oldest == newest[::-1]
    refuse(lambda: client.files.list(after="file-none"), 400, "file-none", "after")


def test_a_large_file_comes_in_parts_in_the_order_named(client: OpenAI) -> None:
    content = rows(40)
    made = client.uploads.create(
        filename="big.jsonl", bytes=len(content), mime_type="text/jsonl", purpose="fine-tune"
    )
    half = len(content) // 2
    second = client.uploads.parts.create(made.id, data=content[half:])
    first = client.uploads.parts.create(made.id, data=content[:half])
    refuse(lambda: client.uploads.complete(made.id, part_ids=[first.id]), 400, "bytes")
    refuse(lambda: client.uploads.complete(made.id, part_ids=["part_x"]), 400, "part_x")
    done = client.uploads.complete(made.id, part_ids=[first.id, second.id])
    assert done.status == "completed"
    assert done.file is not None
    assert client.files.content(done.file.id).read() == content
    refuse(lambda: client.uploads.cancel(made.id), 400, "completed")
    other = client.uploads.create(
        filename="x", bytes=5, mime_type="text/jsonl", purpose="fine-tune"
    )
    assert client.uploads.cancel(other.id).status == "cancelled"


def test_nine_examples_fail_the_job_and_a_finished_job_cannot_be_cancelled(client: OpenAI) -> None:
    job = client.fine_tuning.jobs.create(model="tiny", training_file=upload(client, rows(9)))
    failed = finish(client, job.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error.param == "training_file"
    for verb in ("cancel", "pause", "resume"):
        refuse(lambda verb=verb: getattr(client.fine_tuning.jobs, verb)(job.id), 400, "failed")


def test_jobs_are_found_by_metadata(client: OpenAI) -> None:
    file = upload(client)
    create = client.fine_tuning.jobs.create
    red = [create(model="tiny", training_file=file, metadata={"c": "red"}).id for _ in range(3)]
    bare = create(model="tiny", training_file=file).id
    found = client.fine_tuning.jobs.list(limit=2, metadata={"c": "red"})
    assert [job.id for job in found] == red[::-1]
    none = [job.id for job in client.fine_tuning.jobs.list(extra_query={"metadata": "null"})]
    assert bare in none
    assert not set(red) & set(none)
    for job in (*red, bare):
        finish(client, job)


def test_keys_of_the_ledger_open_their_project_and_revoked_ones_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = place.site.tuning.ledger
    key = create_key(ledger, "gamma")
    place.site.keys.adopt(valid_keys(ledger))
    with place.client(key) as client:
        assert client.files.retrieve(upload(client)).object == "file"
        revoke_key(ledger, key)
        place.site.keys.adopt(valid_keys(ledger))
        with pytest.raises(openai.AuthenticationError):
            client.files.list()
    alone = Keys()
    assert alone.find(None) is not None
    alone.adopt({b"x" * 32: "p"})
    alone.adopt({})
    assert alone.find(None) is None
    with pytest.raises(LedgerError, match="letters"):
        create_key(ledger, "a:b")
    shown = list_keys(ledger)[-1]
    assert key.startswith(shown.hint)
    assert len(shown.hint) == 9


def test_a_server_without_state_has_none_of_these_routes() -> None:
    app = create_app(Registry(), Settings(), Keys())
    assert not [path for path in app.openapi()["paths"] if "files" in path or "tuning" in path]
