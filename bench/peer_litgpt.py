"""LitGPT's LoRA loop on rows prepared by `train_speed.py`; runs in an environment of its own.

    pip install litgpt requests      (into an environment of its own)
    python bench/train_speed.py --peer litgpt=OTHER/bin/python

LitGPT has no chats of several turns: what stands before the last answer is its instruction, text
with the template's own control tokens in it. Adapters of the same rank lie on all linear layers,
weights are in the format that the machine multiplies faster, and a step is one batch.
"""

from __future__ import annotations

import csv
import json
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

from litgpt.args import EvalArgs, TrainArgs
from litgpt.data import JSON
from litgpt.finetune import lora
from litgpt.prompts import Default
from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint

MODEL = "SmolLM2-135M-Instruct"


def main() -> None:
    about: dict[str, Any] = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as scratch:
        # LitGPT knows an architecture by the name of its folder.
        model = Path(scratch) / MODEL
        model.mkdir()
        for file in Path(about["model"]).iterdir():
            (model / file.name).symlink_to(file)
        convert_hf_checkpoint(
            checkpoint_dir=model, model_name=MODEL, dtype="bfloat16" if about["bf16"] else "float32"
        )
        data = Path(scratch) / "data"
        data.mkdir()
        rows = [{"instruction": row["before"], "output": row["answer"]} for row in about["rows"]]
        (data / "train.json").write_text(json.dumps(rows), encoding="utf-8")
        (data / "val.json").write_text(json.dumps(rows[:1]), encoding="utf-8")
        out = Path(scratch) / "out"
        # What follows training reads the command line, of which there is none here.
        lora.save_hyperparameters = lora.merge_lora = lambda *_, **__: None
        lora.setup(
            model,
            out_dir=out,
            precision="bf16-true" if about["bf16"] else "32-true",
            lora_r=about["rank"],
            lora_alpha=about["alpha"],
            lora_dropout=0.0,
            lora_key=True,
            lora_projection=True,
            lora_mlp=True,
            data=JSON(json_path=data, prompt_style=Default(), mask_prompt=True, num_workers=0),
            train=TrainArgs(
                save_interval=10_000,
                log_interval=1,
                global_batch_size=about["batch"],
                micro_batch_size=about["batch"],
                lr_warmup_steps=1,
                epochs=about["epochs"],
            ),
            eval=EvalArgs(interval=10_000, max_new_tokens=1, max_iters=1, final_validation=False),
            optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": about["rate"]}},
        )
        with next(out.rglob("metrics.csv")).open(encoding="utf-8", newline="") as file:
            steps = [row for row in csv.DictReader(file) if row.get("iter_time")]
    seconds = [float(row["iter_time"]) for row in steps[1:]]
    line = {
        "seconds": sum(seconds),
        "share": len(seconds) / len(steps),
        "first": float(steps[0]["loss"]),
        "last": float(steps[-1]["loss"]),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
