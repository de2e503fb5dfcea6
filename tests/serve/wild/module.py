"""In the style of small helpers: the module's own client, raw responses, dumps, a cancelled job."""

import sys

import openai

MODEL = "gpt-4o-mini-2024-07-18"

file = openai.files.create(file=open("train.jsonl", "rb"), purpose="fine-tune")  # noqa: SIM115
print(file.model_dump_json(indent=2))
openai.files.wait_for_processing(file.id, poll_interval=0.2)

raw = openai.fine_tuning.jobs.with_raw_response.create(
    training_file=file.id,
    model=MODEL,
    seed=105,
    method={
        "type": "supervised",
        "supervised": {"hyperparameters": {"n_epochs": 2, "learning_rate_multiplier": 1.8}},
    },
    integrations=[{"type": "wandb", "wandb": {"project": "my-wandb-project", "tags": ["a"]}}],
)
print(raw.headers.get("x-request-id"))
assert raw.status_code == 200
job = raw.parse()
assert job.seed == 105

told = set()
status = job.status
while status not in ("succeeded", "failed", "cancelled"):
    for event in openai.fine_tuning.jobs.list_events(fine_tuning_job_id=job.id, limit=2):
        if event.id not in told:
            told.add(event.id)
            print(f"[{event.created_at}] {event.level}: {event.message} {event.data or ''}")
    status = openai.fine_tuning.jobs.retrieve(job.id).status
job = openai.fine_tuning.jobs.retrieve(job.id)
if job.status != "succeeded":
    sys.exit(f"job ended as {job.status}: {job.error}")

for checkpoint in openai.fine_tuning.jobs.checkpoints.list(job.id):
    print(checkpoint.step_number, checkpoint.metrics.train_loss, checkpoint.metrics.valid_loss)
    assert checkpoint.metrics.train_mean_token_accuracy is not None
    chat = openai.chat.completions.create(
        model=checkpoint.fine_tuned_model_checkpoint,
        messages=[{"role": "user", "content": "Hello!"}],
        stream=True,
    )
    print("".join(part.choices[0].delta.content or "" for part in chat if part.choices))

# Ten of the newest, and the page after them.
page = openai.fine_tuning.jobs.list(limit=1)
print(page.data[0].id, page.has_more)

second = openai.fine_tuning.jobs.create(training_file=file.id, model=MODEL)
try:
    print(openai.fine_tuning.jobs.cancel(second.id).status)
except openai.BadRequestError as error:  # it was quicker
    print(error.message)
try:
    openai.fine_tuning.jobs.create(training_file="file-abc123", model=MODEL)
except openai.BadRequestError as error:
    print("refused:", error.code, error.param, error.message)
else:
    raise AssertionError("a file that is not there was taken")
print(openai.models.delete(job.fine_tuned_model).deleted)
