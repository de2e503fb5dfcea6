"""Training speed and memory beside TRL's SFTTrainer: same rows, same model, same LoRA, one run.

    python bench/train_speed.py [--rows 64] [--epochs 2] [--repeat 1] [--data FILE]

Each contestant trains in a process of its own, one after the other, so that peak memory is its
own. Real tokens are the rows' tokens under the chat template, counted once for all contestants;
padding earns nothing. The first optimizer step warms up and is left out of everyone's time.
With `--peer litgpt=PYTHON --peer llamafactory=PYTHON`, each the interpreter of an environment where
that tool is installed, those take part (`peer_litgpt.py`, `peer_llamafactory.py`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RANK, ALPHA, RATE, STEP_ROWS = 16, 32, 1e-3, 16
PEERS = {"litgpt": ("litgpt",), "llamafactory": ("llamafactory", "llamafactory-packed")}
CONTESTANTS = (
    "timechat",
    "trl-defaults",
    "trl-bf16",
    "trl-bf16-packed",
    "trl-bf16-by-length",
    "trl-fp32-packed",
)


def load_rows(count: int, data: str) -> list[dict[str, Any]]:
    """The first rows of `data` (JSON lines of messages), or of the shipped data set."""
    from timechat.shipped import shipped

    if data:
        lines = Path(data).read_text(encoding="utf-8").splitlines()
        return [{"messages": json.loads(line)["messages"]} for line in lines[:count]]
    system = shipped("helpdesk/system.txt").read_text(encoding="utf-8").strip()
    lines = shipped("helpdesk/conversations.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line)["messages"] for line in lines[:count]]
    return [{"messages": [{"role": "system", "content": system}, *turns]} for turns in rows]


def count_tokens(rows: list[dict[str, Any]]) -> int:
    from timechat.model.load import load_tokenizer, resolve

    tokenizer = load_tokenizer(resolve("starter").folder)
    return sum(len(tokenizer.apply_chat_template(r["messages"])["input_ids"]) for r in rows)


def run_timechat(rows: list[dict[str, Any]], epochs: int) -> dict[str, float]:
    from timechat.conversation import Conversation
    from timechat.data.pack import encode, order, pack
    from timechat.model.adapt import attach
    from timechat.model.load import load, resolve
    from timechat.training.schedule import Settings
    from timechat.training.trainer import Trainer

    loaded = load(resolve("starter"))
    attach(loaded.model, RANK, ALPHA, "all")
    examples = [encode(Conversation.from_dict(row), loaded.renderer) for row in rows]
    num_steps = len(examples) * epochs // STEP_ROWS
    trainer = Trainer(loaded.model, Settings(num_steps, RATE, 1, 0.0, 1.0, 0.0))
    steps = order(len(examples), STEP_ROWS, num_steps, seed=0)
    seconds = 0.0
    records = []
    for number, members in enumerate(steps):
        started = time.perf_counter()
        records.append(trainer.advance((pack([examples[i] for i in members]),)))
        if number:
            seconds += time.perf_counter() - started
    share = (num_steps - 1) / num_steps
    return {"seconds": seconds, "share": share, "first": records[0].loss, "last": records[-1].loss}


def run_trl(rows: list[dict[str, Any]], epochs: int, variant: str) -> dict[str, float]:
    import torch
    from clock import Clock
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from timechat.model.load import resolve

    folder = str(resolve("starter").folder)
    options: dict[str, Any] = {}
    model: Any = folder
    if variant != "trl-defaults":
        wide = "fp32" in variant
        dtype = torch.float32 if wide else torch.bfloat16
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        options = {
            "gradient_checkpointing": False,
            "per_device_train_batch_size": STEP_ROWS,
            "bf16": not wide,
        }
    if variant.endswith("-packed"):
        options.update(packing=True, max_length=1024, per_device_train_batch_size=1)
    if variant.endswith("-by-length"):
        options.update(train_sampling_strategy="group_by_length")
    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        config = SFTConfig(
            output_dir=scratch,
            num_train_epochs=epochs,
            learning_rate=RATE,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            logging_steps=1,
            **options,
        )
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(folder),
            peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear"),
            callbacks=[clock],
        )
        trainer.train()
    return clock.told()


def child(name: str, count: int, epochs: int, data: str, peers: list[str]) -> None:
    from timechat.model.machine import peak_memory

    rows = load_rows(count, data)
    if name == "timechat":
        run = run_timechat(rows, epochs)
    elif name.startswith("trl"):
        run = run_trl(rows, epochs, name)
    else:
        python = dict(peer.split("=", 1) for peer in peers)[name.partition("-")[0]]
        run = run_peer(rows, epochs, name, python)
    tokens = count_tokens(rows) * epochs * run["share"]
    # A contestant in a process of its own brings its own peak.
    line = {"peak_bytes": peak_memory(), **run, "tokens_per_second": tokens / run["seconds"]}
    print(json.dumps(line))


def run_peer(rows: list[dict[str, Any]], epochs: int, name: str, python: str) -> dict[str, float]:
    from timechat.model.load import load_tokenizer, resolve
    from timechat.model.number_format import has_fast_bf16

    tool, _, variant = name.partition("-")
    folder = resolve("starter").folder
    tokenizer = load_tokenizer(folder)
    packing = variant == "packed"
    about = {
        "model": str(folder),
        "rows": [
            {
                "messages": row["messages"],
                # For a tool that has no chats: what stands before the last answer, as text.
                "before": tokenizer.apply_chat_template(
                    row["messages"][:-1], tokenize=False, add_generation_prompt=True
                ),
                "answer": row["messages"][-1]["content"],
            }
            for row in rows
        ],
        "epochs": epochs,
        "rank": RANK,
        "alpha": ALPHA,
        "rate": RATE,
        "packing": packing,
        "batch": 1 if packing else STEP_ROWS,
        # What this machine multiplies faster, for a tool that can be told.
        "bf16": has_fast_bf16(),
    }
    ask = [python, str(Path(__file__).with_name(f"peer_{tool}.py"))]
    done = subprocess.run(
        ask, input=json.dumps(about), stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(
    name: str, count: int, epochs: int, data: str, peers: list[str]
) -> dict[str, float] | None:
    ask = [sys.executable, __file__, "--child", name, "--rows", str(count), "--epochs", str(epochs)]
    ask += ["--data", data, *(part for peer in peers for part in ("--peer", peer))]
    done = subprocess.run(ask, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(f"{name}: failed\n{done.stderr[-1500:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--data", default="", help="JSON lines of messages; default: shipped")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=PYTHON",
        help=f"another tool ({', '.join(PEERS)}) and the Python that has it",
    )
    parser.add_argument("--only", nargs="+", help="timechat and these alone")
    parser.add_argument("--child")
    given = parser.parse_args()
    if given.child:
        child(given.child, given.rows, given.epochs, given.data, given.peer)
        return
    from timechat.model.machine import machine_name

    print(f"{machine_name()}; {given.rows} rows x {given.epochs} epochs, rank {RANK}")
    print("| contestant | real tokens/s | peak GiB | last loss |")
    print("|---|---|---|---|")
    found: dict[str, tuple[float, float]] = {}
    others = [name for peer in given.peer for name in PEERS[peer.partition("=")[0]]]
    for name in (CONTESTANTS[0], *given.only) if given.only else (*CONTESTANTS, *others):
        runs = [
            measure(name, given.rows, given.epochs, given.data, given.peer)
            for _ in range(given.repeat)
        ]
        good = [run for run in runs if run is not None]
        if not good:
            print(f"| {name} | failed | | |")
            continue
        speed = statistics.median(run["tokens_per_second"] for run in good)
        peak = statistics.median(run["peak_bytes"] for run in good) / 2**30
        found[name] = (speed, peak)
        print(f"| {name} | {speed:.0f} | {peak:.2f} | {good[0]['last']:.3f} |", flush=True)
    ours = found.pop("timechat")
    for name, (speed, peak) in sorted(found.items(), key=lambda one: -one[1][0]):
        print(f"{ours[0] / speed:.1f} times {name}, in {ours[1] / peak:.2f} of its memory")


if __name__ == "__main__":
    main()
