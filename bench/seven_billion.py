"""One LoRA step of a model of Llama 2 7B's shape on a small machine, by the code that runs use.

    python bench/seven_billion.py --scratch DIR [--bits 16 4] [--steps 2] [--layers 32]

Random weights are written to DIR once, as sharded safetensors in bf16 (13.5 GB), and mapped, not
copied. For each number of bits a process of its own loads them, attaches adapters of rank 16 to
all linear layers (with 4 or 8 bits the base is quantised first, layer after layer, and the file's
pages are let go of), has each layer worked out again in the backward pass, and does optimizer
steps on one row. `--layers 2` tries it all in small.

Peak memory is the process's largest resident size, the pages of the mapped file included. The
share of the limit is the arithmetic of all products, those done again counted, over the rate of
one such product alone in the same process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

SHAPE = "meta-llama/Llama-2-7b-hf"
RANK = 16
SHARD_LAYERS = 8


def write_model(folder: Path, layers: int) -> None:
    """The model in `folder`, unless it is there: a shard for every few layers, bf16."""
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    from timechat.model.shapes import SHAPES

    if (folder / "config.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {**SHAPES[SHAPE], "num_hidden_layers": layers, "dtype": "bfloat16"}
    config = AutoConfig.for_model(numbers.pop("model_type"), **numbers)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    shards: dict[int, list[str]] = {}
    for name in model.state_dict():
        part = name.split("layers.")[-1].partition(".")[0]
        shards.setdefault(int(part) // SHARD_LAYERS if part.isdigit() else -1, []).append(name)
    places: dict[str, str] = {}
    generator = torch.Generator().manual_seed(0)
    for number, names in sorted(shards.items()):
        file = f"model-{number + 2:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for name in names:
            place = torch.empty(model.get_parameter(name).shape, dtype=torch.bfloat16)
            if place.dim() == 1:
                tensors[name] = place.fill_(1)
            else:
                tensors[name] = place.normal_(0, 0.02, generator=generator)
            places[name] = file
        save_file(tensors, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    write_tokenizer(folder)
    config.save_pretrained(folder)


def write_tokenizer(folder: Path) -> None:
    """Letters are enough: the rows are numbers, but a model folder has a tokenizer."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(vocab={"a": 0, "</s>": 1}, merges=[]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '</s>' }}{% endfor %}"
    tokenizer.save_pretrained(folder)


def resident() -> dict[str, float]:
    """GiB resident now: of the process's own, and of mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    rows = dict(line.split(":", 1) for line in lines)
    return {name: int(rows[name].split()[0]) / 2**20 for name in ("RssAnon", "RssFile")}


def product_rate(tokens: int, hidden: int, inner: int, dtype: torch.dtype) -> float:
    """Floating-point operations a second of one of the model's products, best of a few."""
    x, weight = torch.randn(tokens, hidden).to(dtype), torch.randn(inner, hidden).to(dtype)
    best = float("inf")
    for _ in range(6):
        started = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        best = min(best, time.perf_counter() - started)
    return 2 * tokens * hidden * inner / best


def child(folder: Path, bits: int, steps: int, tokens: int) -> dict[str, Any]:
    from timechat.data.pack import Example, pack
    from timechat.model.load import load, resolve
    from timechat.model.machine import peak_memory
    from timechat.model.method import begin
    from timechat.model.recompute import recompute_layers
    from timechat.recipe import Lora, Qlora
    from timechat.training.schedule import Settings
    from timechat.training.trainer import Trainer

    started = time.perf_counter()
    model = load(resolve(str(folder))).model
    sizes = model.config
    products = sum(p.numel() for n, p in model.named_parameters() if "_proj" in n)
    adapt = Lora(rank=RANK) if bits == 16 else Qlora(rank=RANK, bits=4 if bits == 4 else 8)
    change = begin(model, adapt, 2.0 * RANK, 0)
    recompute_layers(model)
    trainer = Trainer(model, Settings(100, 1e-4, 1, 0.0, 1.0, 0.0), change)
    loading = time.perf_counter() - started
    loaded_peak = peak_memory()
    trainer.model.train()
    ids = torch.randint(0, int(sizes.vocab_size), (tokens + 1,)).tolist()
    batch = pack([Example(tuple(ids), (0.0,) * (tokens // 2 + 1) + (1.0,) * (tokens // 2), "r")])
    times, losses = [], []
    for _ in range(steps + 1):
        started = time.perf_counter()
        losses.append(trainer.advance((batch,)).loss)
        times.append(time.perf_counter() - started)
    step = statistics.median(times[1:])
    # Forwards, once more, and backwards to the inputs: the frozen weights have no gradient.
    work = 3 * 2 * products * tokens
    dtype = model.dtype
    rate = product_rate(tokens, int(sizes.hidden_size), int(sizes.intermediate_size), dtype)
    return {
        "bits": bits,
        "computes_in": str(dtype),
        "load_s": loading,
        "first_s": times[0],
        "step_s": step,
        "tokens_s": tokens / step,
        "gflops": work / step / 1e9,
        "limit": work / step / rate,
        "load_peak": loaded_peak / 2**30,
        "peak": peak_memory() / 2**30,
        **resident(),
        "losses": losses,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, required=True, help="where the weights are written")
    parser.add_argument("--bits", type=int, nargs="+", default=[16, 4], choices=[16, 8, 4])
    parser.add_argument("--steps", type=int, default=2, help="timed ones, after one to warm up")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--only-write", action="store_true")
    parser.add_argument("--child", type=int)
    given = parser.parse_args()
    folder = given.scratch / f"seven-billion-{given.layers}"
    if given.child:
        print(json.dumps(child(folder, given.child, given.steps, given.tokens)))
        return
    from timechat.model.machine import machine_name

    write_model(folder, given.layers)
    if given.only_write:
        return
    print(f"{machine_name()}; {SHAPE}, {given.layers} layers, one row of {given.tokens} tokens")
    print("| base | s a step | tokens/s | GFLOP/s | of the limit | peak GiB | loading s |")
    print("|---|---|---|---|---|---|---|")
    for bits in given.bits:
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--child", str(bits)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found = json.loads(done.stdout.strip().splitlines()[-1])
        print(
            f"| {'bf16, mapped' if bits == 16 else f'{bits} bits'} | {found['step_s']:.1f} | "
            f"{found['tokens_s']:.1f} | {found['gflops']:.0f} | {found['limit']:.0%} | "
            f"{found['peak']:.1f} | {found['load_s']:.0f} |",
            flush=True,
        )
        print(json.dumps(found), file=sys.stderr)


if __name__ == "__main__":
    main()
