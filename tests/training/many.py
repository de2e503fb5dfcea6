"""What one of several ranks does in test_ranks.py; torchrun starts it.

    torchrun --nproc-per-node 2 many.py FOLDER

For each method: six steps from the start with a checkpoint in the middle, and the last three again
from the checkpoint that one process left in FOLDER.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from conftest import build_tokenizer
from methods import METHODS, build, held, rows, start

from timechat.data.pack import Batch, pack
from timechat.model.load import Loaded, Source
from timechat.model.ranks import ALONE, Ranks, join, leave
from timechat.model.render import Renderer
from timechat.training import checkpoint
from timechat.training.schedule import Settings
from timechat.training.trainer import Trainer

SETTINGS = Settings(
    num_steps=6, learning_rate=2e-3, warmup_steps=2, weight_decay=0.1, clip=1.0, replay_weight=1.0,
    average_steps=3.0,
)  # fmt: skip
IDENTITY = checkpoint.Identity("base", "some", {"base": "b", "data": "d", "recipe": "r"})
CASES = [(family, method) for family in ("llama", "llama-tied") for method in METHODS]
CASES = [case for case in CASES if case[0] == "llama" or case[1] in ("full", "layers-ends")]


def trainer(family: str, method: str, ranks: Ranks = ALONE) -> Trainer:
    model = build(family)
    return Trainer(model, SETTINGS, start(model, method, ranks=ranks))


def step(number: int, ranks: Ranks = ALONE) -> tuple[Batch, ...]:
    """Rows of unlike number and length for each rank, and held rows for all."""
    every = [*rows()[number % 2 :], replace(rows()[0], id="again")]
    others = [*held(), replace(held()[0], ids=(50, 51, 52, 53), id="h1")]
    return (pack(ranks.take(every), ranks.take(others)),)


def run(made: Trainer, first: int, last: int) -> list[list[float]]:
    found = []
    for number in range(first, last):
        record = made.advance(step(number, made.ranks))
        found.append([record.loss, record.replay_loss or 0.0, record.grad_norm, record.tokens])
    return found


def save(made: Trainer, folder: Path) -> None:
    tokenizer = build_tokenizer()
    loaded = Loaded(Source("tiny", folder), made.model, tokenizer, Renderer(tokenizer))
    checkpoint.save(folder, made, loaded, IDENTITY, {})


def main(folder: Path) -> None:
    ranks = join()
    torch.manual_seed(ranks.number)
    found = {}
    for family, method in CASES:
        name = f"{family}-{method}"
        made = trainer(family, method, ranks)
        records = run(made, 0, 3)
        save(made, folder / f"two-{name}")
        records += run(made, 3, 6)
        again = trainer(family, method, ranks)
        checkpoint.restore(folder / f"one-{name}", again, IDENTITY)
        found[name] = [records, run(again, 3, 6)]
        with again.change.base():
            pass  # swapped there and back, nothing is lost
        found[name].append([again.parameters[0].numel() / made.parameters[0].numel()])
    (folder / f"found-{ranks.number}.json").write_text(json.dumps(found))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
