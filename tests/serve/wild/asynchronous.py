"""In the style of sweeps: the asynchronous client, several jobs at once, results into one table."""

import asyncio
import csv
import io

from openai import AsyncOpenAI

client = AsyncOpenAI(max_retries=3, timeout=60)
MODEL = "gpt-4o-mini-2024-07-18"


async def train(file_id: str, epochs: int) -> dict:
    job = await client.fine_tuning.jobs.create(
        training_file=file_id,
        model=MODEL,
        suffix=f"sweep-{epochs}",
        hyperparameters={"n_epochs": epochs},
        metadata={"sweep": "epochs", "epochs": str(epochs)},
    )
    while job.status not in ("succeeded", "failed", "cancelled"):
        await asyncio.sleep(0.2)
        job = await client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded", job.error
    messages = [event.message async for event in client.fine_tuning.jobs.list_events(job.id)]
    assert any(message.startswith("Step ") for message in messages)
    content = await client.files.content(job.result_files[0])
    rows = list(csv.DictReader(io.StringIO(content.text)))
    answer = await client.chat.completions.create(
        model=job.fine_tuned_model, messages=[{"role": "user", "content": "Hi"}]
    )
    return {
        "epochs": epochs,
        "tokens": job.trained_tokens,
        "train_loss": float(rows[-1]["train_loss"]),
        "valid_loss": float([row for row in rows if row["valid_loss"]][-1]["valid_loss"]),
        "answer": answer.choices[0].message.content,
    }


async def main() -> None:
    with open("train.jsonl", "rb") as rows:
        file = await client.files.create(file=rows, purpose="fine-tune")
    await client.files.wait_for_processing(file.id, poll_interval=0.2)
    for row in await asyncio.gather(*(train(file.id, epochs) for epochs in (1, 2))):
        print(row)
    found = [job async for job in client.fine_tuning.jobs.list(metadata={"sweep": "epochs"})]
    assert len(found) == 2
    async for listed in client.files.list(purpose="fine-tune"):
        if listed.id == file.id:
            break
    else:
        raise AssertionError("the file is not listed")
    assert (await client.files.delete(file.id)).deleted


asyncio.run(main())
