"""Four conversations at once on PyTorch: our scheduler with the adapter folded in and apart, and
transformers' own continuous batching, side by side in one run on the starter.

    python bench/scheduler.py [--tokens 48] [--rounds 3] [--arms folded,apart,continuous]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

from transformers import GenerationConfig

from timechat.engine.batch import BatchCore
from timechat.engine.protocol import Request, Sampling
from timechat.model.adapt import attach, merge
from timechat.model.load import load, resolve

WORDS = ("a ship", "a bear", "a tree", "a door")


def prompts() -> list[list[int]]:
    from timechat.conversation import Message
    from timechat.model.load import load_tokenizer
    from timechat.model.render import Renderer

    render = Renderer(load_tokenizer(resolve("starter").folder))
    return [render.prompt([Message("user", f"Tell me a story of {what}.")]) for what in WORDS]


def core_arm(folded: bool | None) -> Callable[[int, int], int]:
    """Our scheduler: without an adapter, with one apart, or with one folded into the base."""
    model = load(resolve("starter")).model
    if folded is not None:
        attach(model, rank=16, alpha=32, targets="all")
        if folded:
            merge(model)
    core = BatchCore(model)

    def run(tokens: int, many: int) -> int:
        for key, prompt in enumerate(prompts()[:many]):
            core.add(key, Request(prompt, Sampling(max_new_tokens=tokens)))
        count = 0
        while core.busy:
            count += sum(delta.token is not None for _, delta in core.step())
        return count

    return run


def continuous_arm() -> Callable[[int, int], int]:
    """`generate_batch` of transformers; its manager stays from one round to the next."""
    model = load(resolve("starter")).model
    model.set_attn_implementation("sdpa")

    def run(tokens: int, many: int) -> int:
        config = GenerationConfig(
            max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        out = model.generate_batch(
            prompts()[:many], generation_config=config, progress_bar=False, persistent_manager=True
        )
        return sum(len(one.generated_tokens) for one in out.values())

    return run


ARMS: dict[str, Callable[[], Callable[[int, int], int]]] = {
    "base": lambda: core_arm(None),
    "folded": lambda: core_arm(True),
    "apart": lambda: core_arm(False),
    "continuous": continuous_arm,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arms", default="folded,apart,continuous")
    asked = parser.parse_args()
    arms = {name: ARMS[name]() for name in asked.arms.split(",")}
    found: dict[tuple[str, int], list[float]] = {}
    for turn in range(asked.rounds + 1):
        for name, run in arms.items():
            for many in (1, 4):
                begun = time.perf_counter()
                count = run(asked.tokens, many)
                rate = count / (time.perf_counter() - begun)
                if turn:  # the first is for warming up
                    found.setdefault((name, many), []).append(rate)
    for (name, many), rates in found.items():
        print(f"{name:12s} {many} at once: {statistics.median(rates):6.1f} tokens/s {rates}")


if __name__ == "__main__":
    main()
