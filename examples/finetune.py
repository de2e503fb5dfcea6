"""Fine-tune, follow, and chat with the result: the same script for OpenAI's service and TimeChat's.

    python examples/finetune.py ROWS.jsonl MODEL

`OPENAI_BASE_URL` and `OPENAI_API_KEY` say which; nothing below knows.
"""

from __future__ import annotations

import sys
import time

from openai import OpenAI


def main(path: str, model: str) -> None:
    client = OpenAI()
    with open(path, "rb") as rows:
        file = client.files.create(file=rows, purpose="fine-tune")
    client.files.wait_for_processing(file.id)
    job = client.fine_tuning.jobs.create(model=model, training_file=file.id, suffix="mine")
    print(job.id)
    told: set[str] = set()
    while job.status not in ("succeeded", "failed", "cancelled"):
        time.sleep(5)
        job = client.fine_tuning.jobs.retrieve(job.id)
        for event in reversed(list(client.fine_tuning.jobs.list_events(job.id, limit=100))):
            if event.id not in told:
                told.add(event.id)
                print(event.message)
    if job.fine_tuned_model is None:
        sys.exit(f"{job.status}: {job.error.message if job.error else ''}")
    print(client.files.content(job.result_files[0]).read().decode("utf-8"))
    answer = client.chat.completions.create(
        model=job.fine_tuned_model, messages=[{"role": "user", "content": "Hello!"}]
    )
    print(answer.choices[0].message.content)


if __name__ == "__main__":
    main(*sys.argv[1:])
