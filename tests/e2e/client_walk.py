"""The whole walk of a fine-tuning script, with whichever version of OpenAI's client is installed.

    python client_walk.py URL ROWS MODEL

Every response is validated strictly. What this version of the client does not know is left out,
except where its own escape hatch (`extra_body`) reaches it.
"""

from __future__ import annotations

import inspect
import json
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import openai
from openai import OpenAI

QUICK = {"evaluate.max_questions": 6, "evaluate.max_new_tokens": 4}


def create(client: OpenAI, model: str, file: str, **more: Any) -> Any:
    """A job, asked for in the newest form that this client knows."""
    known = inspect.signature(client.fine_tuning.jobs.create).parameters
    parameters = {"n_epochs": 2, "batch_size": 8, **QUICK}
    extra = {name: more.pop(name) for name in list(more) if name not in known}
    if "method" in known:
        more["method"] = {"type": "supervised", "supervised": {"hyperparameters": parameters}}
    else:
        more["hyperparameters"] = parameters
    return client.fine_tuning.jobs.create(
        model=model, training_file=file, extra_body=extra or None, **more
    )


def finish(client: OpenAI, job: str) -> Any:
    while True:
        found = client.fine_tuning.jobs.retrieve(job)
        if found.status in ("succeeded", "failed", "cancelled"):
            return found
        time.sleep(0.5)


def refuse(status: int, call: Callable[[], Any]) -> None:
    started = time.monotonic()
    refused: openai.APIStatusError | None = None
    try:
        call()
    except openai.APIStatusError as error:
        refused = error
    assert refused is not None, f"not refused with {status}"
    assert refused.status_code == status, refused
    assert refused.response.json()["error"]["message"]
    assert time.monotonic() - started < 10, "the client tried again and again"


def ask(client: OpenAI, model: str) -> None:
    said = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "What colour is door 1?"}], max_tokens=8
    )
    assert said.choices[0].message.role == "assistant"


def read(client: OpenAI, file: str) -> str:
    if hasattr(client.files, "content"):
        return client.files.content(file).read().decode("utf-8")
    return client.files.retrieve_content(file)  # all that the first releases had


def follow(client: OpenAI, job: Any) -> Any:
    """The job to its end, and all that it leaves."""
    done = finish(client, job.id)
    assert done.status == "succeeded", done
    assert done.fine_tuned_model.split(":")[0] == "ft"
    assert done.fine_tuned_model.split(":")[3] == "walk"
    assert done.trained_tokens > 0
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=2))
    assert len({event.id for event in events}) == len(events) > 10
    assert events[-1].message == f"Created fine-tuning job: {job.id}"
    assert events[0].message == "The job has successfully completed"
    curve = read(client, done.result_files[0]).splitlines()
    assert curve[0].startswith("step,train_loss,train_accuracy,valid_loss,valid_mean_token_acc")
    assert [line.split(",")[0] for line in curve[1:]] == [str(n + 1) for n in range(len(curve) - 1)]
    report = json.loads(read(client, done.result_files[1]))
    assert len(report["checks"]) == 6
    assert report["verdict"] in ("improved", "not_improved", "inconclusive")
    return done


def main(url: str, rows: str, model: str) -> None:
    client = OpenAI(
        base_url=url, api_key="any", max_retries=20, _strict_response_validation=True
    )  # fmt: skip
    with open(rows, "rb") as content:
        lines = content.readlines()
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as train:  # a file, as scripts bring one
        train.writelines(line for number, line in enumerate(lines) if number % 4)
        train.seek(0)
        file = client.files.create(file=train.file, purpose="fine-tune")  # type: ignore[arg-type]
    held = client.files.create(file=("held.jsonl", b"".join(lines[::4])), purpose="fine-tune")
    if hasattr(client.files, "wait_for_processing"):
        client.files.wait_for_processing(file.id)
    assert client.files.retrieve(file.id).status == "processed"
    more = {"suffix": "walk", "seed": 5, "metadata": {"who": "walk"}, "validation_file": held.id}
    job = create(client, model, file.id, **more)
    print(job.id, flush=True)
    done = follow(client, job)
    ask(client, done.fine_tuned_model)
    points: list[Any] = []
    if hasattr(client.fine_tuning.jobs, "checkpoints"):
        points = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
        assert points
        for point in points:
            assert point.metrics.full_valid_loss > 0
            assert point.metrics.train_loss > 0
            ask(client, point.fine_tuned_model_checkpoint)
    found = list(client.fine_tuning.jobs.list(limit=1))
    assert job.id in [one.id for one in found]
    assert done.fine_tuned_model in [one.id for one in client.models.list()]
    assert client.models.retrieve(done.fine_tuned_model).id == done.fine_tuned_model

    refuse(400, lambda: create(client, model, "file-none"))
    refuse(400, lambda: create(client, model, done.result_files[0]))  # another purpose
    refuse(404, lambda: create(client, "no-such-model", file.id))
    refuse(404, lambda: client.files.retrieve("file-none"))
    refuse(404, lambda: client.fine_tuning.jobs.retrieve("ftjob-none"))
    refuse(400, lambda: client.fine_tuning.jobs.cancel(job.id))
    refuse(400, lambda: client.files.create(file=("a", b"not json\n"), purpose="fine-tune"))
    few = client.files.create(
        file=("nine.jsonl", b"".join(lines[:9])), purpose="fine-tune"
    )  # fmt: skip
    failed = finish(client, create(client, model, few.id).id)
    assert failed.status == "failed", failed
    assert failed.error.param == "training_file"
    assert failed.error.code == "invalid_n_examples"

    waiting = create(client, model, file.id)
    if hasattr(client.fine_tuning.jobs, "pause"):
        assert client.fine_tuning.jobs.pause(waiting.id).status in ("queued", "validating_files")
        client.fine_tuning.jobs.resume(waiting.id)
    assert client.fine_tuning.jobs.cancel(waiting.id).status == "cancelled"

    assert client.models.delete(done.fine_tuned_model).deleted
    refuse(404, lambda: ask(client, done.fine_tuned_model))
    assert client.files.delete(file.id).deleted
    print(f"walked with {openai.__version__}: {len(points)} checkpoints", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
