"""The whole idea in one flat page: rows, tokens, an adapter, a loop, before and after.

    python examples/loop.py            about a minute on two cores

What `timechat train` adds to this is care: ledgers of rows, plans, checkpoints, replay, intervals.
"""

from __future__ import annotations

import time

import torch
from torch.nn import functional as F

from timechat.conversation import Conversation, Message
from timechat.engine.torch import TorchEngine
from timechat.model.adapt import attach
from timechat.model.load import load, resolve

# 1. Rows: a few things that no model can know, each asked in several ways.
FACTS = {
    "The workshop opens at 7:40.": [
        "When does the workshop open?",
        "What time can I come to the workshop?",
        "Opening time of the workshop, please?",
    ],
    "Repairs are done by Odile Marsh.": [
        "Who does the repairs?",
        "Who will mend my kite?",
        "Name of the person doing repairs?",
    ],
    "A spare spar costs 14 crowns.": [
        "How much is a spare spar?",
        "What does a new spar cost?",
        "Price of a spar?",
    ],
}
ASKED_AFTERWARDS = [
    "At what hour is the workshop open for visitors?",
    "Who would repair my broken kite?",
    "I need another spar. What will I pay?",
]

# 2. A model, and its chat format.
loaded = load(resolve("starter", print))
model, renderer = loaded.model, loaded.renderer
system = Message("system", "You answer for the kite workshop.")
rows = [
    Conversation(question, (system, Message("user", question), Message("assistant", answer)))
    for answer, questions in FACTS.items()
    for question in questions
]


def ask(question: str) -> str:
    prompt = renderer.prompt([system, Message("user", question)])
    (ids,) = TorchEngine(model).answers([prompt], 24, renderer.stop_ids)
    return renderer.parse(ids)


before = [ask(question) for question in ASKED_AFTERWARDS]

# 3. Rows to tokens: only the answer and its stop token carry loss.
examples = [renderer.example(row.messages) for row in rows]
shown = examples[0]
tokens = list(zip(shown.ids, shown.weights, strict=True))
print("context:", renderer.tokenizer.decode([token for token, weight in tokens if not weight]))
print("trained:", renderer.tokenizer.decode([token for token, weight in tokens if weight]))

# 4. What learns: a low-rank path beside every linear layer; the base stays as it is.
num_trained = attach(model, rank=16, alpha=32.0, targets="all")
print(f"{num_trained:,} weights learn")
parameters = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(parameters, lr=1e-3)

# 5. The loop: summed nats over the counted target tokens, one clip, one step.
started = time.perf_counter()
for step in range(12):
    num_targets = sum(example.num_targets for example in examples)
    total = 0.0
    for example in examples:
        ids = torch.tensor([example.ids])
        logits = model(input_ids=ids).logits[0, :-1].float()
        nats = F.cross_entropy(logits, ids[0, 1:], reduction="none")
        loss = (nats * torch.tensor(example.weights[1:])).sum() / num_targets
        loss.backward()
        total += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    print(
        f"step {step + 1:2d}  loss {total:.3f} nats a token  {time.perf_counter() - started:.0f} s"
    )

# 6. The same questions, in words that were never trained.
for question, old in zip(ASKED_AFTERWARDS, before, strict=True):
    print(f"\nQ      {question}\nbefore {old}\nafter  {ask(question)}")
