"""What is walked on the second device: `python walks.py` prints, for each walk, a JSON line of its
name and the numbers that came out on the CPU and there, or the error."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable

import torch
from conftest import build_model, build_tokenizer
from methods import build, held, rows, start
from second_device import register, second_device
from transformers import PreTrainedModel

from timechat.data.pack import pack
from timechat.engine.batch import BatchCore
from timechat.engine.protocol import Request, Sampling
from timechat.engine.torch import TorchEngine
from timechat.evals.questions.run import choose, likelihoods, mean_divergence
from timechat.evals.questions.suite import make_choice
from timechat.model import attention
from timechat.model.adapt import attach, merge
from timechat.model.recompute import recompute_layers
from timechat.model.render import Renderer
from timechat.training.schedule import Settings
from timechat.training.trainer import Trainer
from timechat.training.trunk import Trunk

Move = Callable[[PreTrainedModel], PreTrainedModel]
SETTINGS = Settings(10, 2e-3, 1, 0.1, 1.0, 0.5, average_steps=3.0)


def train(move: Move, method: str, family: str = "llama", how: str = "") -> list[float]:
    """Three steps with rows held to the base, an average, and a look at what was learned."""
    model = move(build(family))
    trainer = Trainer(model, SETTINGS, start(model, method))
    if how == "recomputed":
        recompute_layers(model)
    if how == "trunk":
        trainer.trunk = Trunk(model, 2)
        trainer.trunk.fill([*rows(), *held()])
    found: list[float] = []
    for number in range(3):
        micro = pack(rows()[number % 2 :], held()), pack(rows()[:2], share_prefix=False)
        record = trainer.advance(micro)
        found += [record.loss, record.grad_norm, record.replay_loss or 0.0, record.accuracy or 0.0]
    if method == "qlora":
        return found  # a wrapped tensor cannot leave inference mode, which its scratch memory does
    with trainer.averaged():
        found += [row.nats for row in likelihoods(model, rows())]
    trainer.settle(0.5)
    return [*found, *(row.nats for row in likelihoods(model, rows()))]


def ask(move: Move) -> list[float]:
    """Likelihoods, choices, a divergence, and answers in a batch and in a stream."""
    model = build_model()
    attach(model, 4, 8.0, "all")
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_b" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model = move(model)
    renderer = Renderer(build_tokenizer())
    wrong = ["no", "perhaps", "it may be"]
    row = {"group": "g", "tags": ["t"], "answer": "yes", "wrong": wrong}
    asked = [{**row, "id": f"c{i}", "question": f"q{i}?"} for i in range(3)]
    choices = [make_choice(row, renderer) for row in asked]
    found = [v for one in choose(model, choices) for v in one.values]
    found += [row.nats for row in likelihoods(model, rows())]
    found.append(mean_divergence(model, rows()))
    prompts = [list(range(5, 5 + n)) for n in (4, 9, 6)]
    engine, stop = TorchEngine(model), frozenset({0})
    found += [t for ids in engine.answers(prompts, 6, stop) for t in ids]
    sampling = Sampling(max_new_tokens=5, temperature=0.7, seed=3)
    found += [d.token for d in engine.stream(prompts[0], sampling, stop) if d.token is not None]
    core = BatchCore(model)
    for key, prompt in enumerate(prompts):
        core.add(key, Request(tuple(prompt), Sampling(max_new_tokens=4), stop))
    while core.busy:
        found += [delta.token for _, delta in core.step() if delta.token is not None]
    merge(model)
    return [*found, *(row.nats for row in likelihoods(model, rows()))]


def mix(move: Move) -> list[float]:
    """A mistake: what a model says, weighed by numbers of the CPU."""
    hidden = move(build_model()).get_input_embeddings().weight
    return (hidden.sum(-1) * torch.ones(len(hidden))).tolist()


WALKS: dict[str, Callable[[Move], list[float]]] = {
    **{m: lambda move, m=m: train(move, m) for m in ("lora", "qlora", "full", "layers-ends")},
    **{f"lora {f}": lambda move, f=f: train(move, "lora", f) for f in ("gpt_neox", "gemma")},
    "layers recomputed": lambda move: train(move, "layers", how="recomputed"),
    "layers from a trunk": lambda move: train(move, "layers", how="trunk"),
    "asking": ask,
    "mixed": mix,
}


def main() -> None:
    register()
    for name, walk in WALKS.items():
        for short in (attention.SHORT, 0):  # 0: scaled_dot_product_attention, as on a GPU
            attention.SHORT = short
            line = {"walk": name, "fused": short == 0, "near": walk(lambda model: model)}
            try:
                with second_device() as device:
                    line["far"] = walk(lambda model: model.to(device))
            except Exception:
                line["error"] = traceback.format_exc(limit=-14)
            print(json.dumps(line), flush=True)
        attention.SHORT = 512


if __name__ == "__main__":
    main()
