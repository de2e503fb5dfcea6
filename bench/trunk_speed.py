"""Training the last sixth of the layers from a kept trunk, beside LoRA: same rows, one process.

    python bench/trunk_speed.py [--rows 64] [--repeat 3]

On the starter and on a model of Llama 2 7B's proportions at an eighth of its width. Steps of the
two methods take turns, so that a busy machine slows both alike; the first step of each warms up.
The trunk is filled beforehand, as a run does, so each step is as one of the second epoch or later.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from timechat.conversation import Conversation
from timechat.data.pack import Example, encode, pack
from timechat.model.fused import fuse
from timechat.model.load import load, resolve
from timechat.model.machine import machine_name
from timechat.model.method import begin, count_learning
from timechat.recipe import Adapt, Layers, Lora
from timechat.training.schedule import Settings
from timechat.training.trainer import Trainer
from timechat.training.trunk import Trunk

STEP_ROWS = 16
SETTINGS = Settings(1000, 1e-4, 1, 0.0, 1.0, 0.0)


def starter_rows(count: int) -> list[Example]:
    import json

    from timechat.shipped import shipped

    renderer = load(resolve("starter")).renderer
    lines = shipped("helpdesk/conversations.jsonl").read_text(encoding="utf-8").splitlines()
    return [encode(Conversation.from_dict(json.loads(line)), renderer) for line in lines[:count]]


def small_llama() -> PreTrainedModel:
    """Llama 2 7B's proportions at an eighth of its width, in bf16, with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4000,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=32,
        num_attention_heads=8,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config).bfloat16().eval()
    fuse(model)
    return model


def trainer(model: PreTrainedModel, adapt: Adapt, rows: list[Example]) -> Trainer:
    depth = count_learning(model, adapt)[1]
    made = Trainer(model, SETTINGS, begin(model, adapt, 32.0, 0))
    if depth:
        made.trunk = Trunk(model, depth)
        made.trunk.fill(rows)
    return made


def measure(name: str, models: list[PreTrainedModel], rows: list[Example], repeat: int) -> None:
    methods = (Lora(), Layers())
    made = [trainer(model, adapt, rows) for model, adapt in zip(models, methods, strict=True)]
    batches = [pack(rows[i : i + STEP_ROWS]) for i in range(0, len(rows), STEP_ROWS)]
    times: list[list[float]] = [[], []]
    for turn in range(repeat + 1):
        for batch in batches[: 1 if turn == 0 else None]:
            for one, taken in zip(made, times, strict=True):
                started = time.perf_counter()
                one.advance((batch,))
                if turn:
                    taken.append(time.perf_counter() - started)
    lora, layers = (statistics.median(taken) for taken in times)
    tokens = sum(batch.num_tokens for batch in batches) / len(batches)
    trunk = made[1].trunk
    assert trunk is not None
    print(
        f"| {name} | {tokens / lora:.0f} | {tokens / layers:.0f} | {lora / layers:.1f} | "
        f"{trunk.num_bytes / 2**20:.0f} MiB |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    print(f"{machine_name()}; {given.rows} rows, {STEP_ROWS} a step, rank 16 against a sixth")
    print("| model | LoRA tokens/s | kept trunk tokens/s | times | trunk |")
    print("|---|---|---|---|---|")
    rows = starter_rows(given.rows)
    measure("starter", [load(resolve("starter")).model for _ in range(2)], rows, given.repeat)
    short = [Example(tuple(t % 4000 for t in row.ids), row.weights, row.id) for row in rows]
    name = "Llama 2 7B's proportions, an eighth as wide"
    measure(name, [small_llama(), small_llama()], short, given.repeat)


if __name__ == "__main__":
    main()
