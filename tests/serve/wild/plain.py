"""In the style of those without the client: HTTP by hand, as curl would do it."""

import os
import time

import httpx

API = os.environ["OPENAI_BASE_URL"]
HEADERS = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}

with open("train.jsonl", "rb") as rows:
    sent = httpx.post(
        f"{API}/files",
        headers=HEADERS,
        files={"file": ("train.jsonl", rows, "application/octet-stream")},
        data={"purpose": "fine-tune"},
        timeout=60,
    )
sent.raise_for_status()
body = {"training_file": sent.json()["id"], "model": "gpt-4o-mini-2024-07-18"}
made = httpx.post(f"{API}/fine_tuning/jobs", headers=HEADERS, json=body, timeout=60)
made.raise_for_status()
job = made.json()
while job["status"] not in ("succeeded", "failed", "cancelled"):
    time.sleep(0.2)
    job = httpx.get(f"{API}/fine_tuning/jobs/{job['id']}", headers=HEADERS, timeout=60).json()
assert job["status"] == "succeeded", job
after, messages = "", []
while True:
    page = httpx.get(
        f"{API}/fine_tuning/jobs/{job['id']}/events",
        headers=HEADERS,
        params={"limit": 5, **({"after": after} if after else {})},
        timeout=60,
    ).json()
    messages += [event["message"] for event in page["data"]]
    if not page["has_more"]:
        break
    after = page["data"][-1]["id"]
assert messages[-1].startswith("Created")
said = httpx.post(
    f"{API}/chat/completions",
    headers=HEADERS,
    json={"model": job["fine_tuned_model"], "messages": [{"role": "user", "content": "Hi"}]},
    timeout=60,
)
print(said.json()["choices"][0]["message"]["content"])
