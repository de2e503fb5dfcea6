"""In the style of the cookbook: upload, wait, create with "auto", poll, read the curve, chat."""

import json
import time

from openai import OpenAI

client = OpenAI()
MODEL = "gpt-4o-mini-2024-07-18"


def upload_file(file_name: str, purpose: str) -> str:
    with open(file_name, "rb") as file_fd:
        response = client.files.create(file=file_fd, purpose=purpose)
    return response.id


training_file_id = upload_file("train.jsonl", "fine-tune")
validation_file_id = upload_file("valid.jsonl", "fine-tune")
print("Training file ID:", training_file_id)

while client.files.retrieve(training_file_id).status != "processed":
    time.sleep(0.2)

response = client.fine_tuning.jobs.create(
    training_file=training_file_id,
    validation_file=validation_file_id,
    model=MODEL,
    suffix="recipe-ner",
    hyperparameters={"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"},
)
job_id = response.id
print("Status:", response.status)

while True:
    response = client.fine_tuning.jobs.retrieve(job_id)
    print("Status:", response.status, "Trained Tokens:", response.trained_tokens)
    if response.status in ["succeeded", "failed", "cancelled"]:
        break
    time.sleep(0.2)

response = client.fine_tuning.jobs.list_events(job_id, limit=50)
events = response.data
events.reverse()
for event in events:
    print(event.message)
assert "successfully completed" in events[-1].message

response = client.fine_tuning.jobs.retrieve(job_id)
fine_tuned_model_id = response.fine_tuned_model
if fine_tuned_model_id is None:
    raise RuntimeError("Fine-tuned model ID not found. Your job has likely not been completed yet.")

result_file = client.files.retrieve(response.result_files[0])
content = client.files.content(result_file.id)
lines = [line.split(",") for line in content.text.strip().split("\n")]
column = lines[0].index("train_accuracy")
accuracies = [float(line[column]) for line in lines[1:]]
losses = [float(line[lines[0].index("train_loss")]) for line in lines[1:]]
assert accuracies
assert all(0 <= value <= 1 for value in accuracies)
assert losses

completion = client.chat.completions.create(
    model=fine_tuned_model_id,
    messages=[
        {"role": "system", "content": "You are a helpful recipe assistant."},
        {"role": "user", "content": "Title: Beef Brisket"},
    ],
    temperature=0,
    max_tokens=50,
)
print(json.dumps({"answer": completion.choices[0].message.content}))
