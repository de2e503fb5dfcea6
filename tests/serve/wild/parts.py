"""In the style of large uploads: parts, an expiry, in chunks by the client itself."""

import hashlib
import time
from pathlib import Path

from openai import OpenAI

client = OpenAI()
MODEL = "gpt-4o-mini-2024-07-18"

upload = client.uploads.upload_file_chunked(
    file=Path("train.jsonl"),
    mime_type="text/jsonl",
    purpose="fine-tune",
    part_size=500,
    md5=hashlib.md5(Path("train.jsonl").read_bytes()).hexdigest(),
)
assert upload.status == "completed"
assert upload.file is not None
assert upload.file.bytes == Path("train.jsonl").stat().st_size

content = Path("valid.jsonl").read_bytes()
begun = client.uploads.create(
    filename="valid.jsonl",
    bytes=len(content),
    mime_type="text/jsonl",
    purpose="fine-tune",
    expires_after={"anchor": "created_at", "seconds": 3600},
)
parts = [client.uploads.parts.create(begun.id, data=content[i : i + 300]).id
         for i in range(0, len(content), 300)]  # fmt: skip
held = client.uploads.complete(begun.id, part_ids=parts).file
assert held is not None
assert held.expires_at is not None
assert abs(held.expires_at - time.time() - 3600) < 120

job = client.fine_tuning.jobs.create(
    training_file=upload.file.id, validation_file=held.id, model=MODEL
)
while job.status not in ("succeeded", "failed", "cancelled"):
    time.sleep(0.2)
    job = client.fine_tuning.jobs.retrieve(job.id)
assert job.status == "succeeded", job.error
client.files.content(job.result_files[0]).write_to_file("results.csv")
print(Path("results.csv").read_text())
