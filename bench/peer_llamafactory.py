"""LLaMA-Factory's LoRA loop on rows prepared by `train_speed.py`; in an environment of its own.

    pip install llamafactory             (into an environment of its own: it pins older libraries)
    python bench/train_speed.py --peer llamafactory=OTHER/bin/python

A step is one batch, nothing recomputed; in fp32, because it refuses bf16 where there is no GPU.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

from clock import Clock
from llamafactory.train.tuner import run_exp

ROLES = {"role_tag": "role", "content_tag": "content", "user_tag": "user"}
ROLES |= {"assistant_tag": "assistant", "system_tag": "system"}


def main() -> None:
    about: dict[str, Any] = json.load(sys.stdin)
    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch)
        (data / "rows.json").write_text(json.dumps(about["rows"]), encoding="utf-8")
        named = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": ROLES}
        info = {"rows": {"file_name": "rows.json", **named}}
        (data / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
        settings: dict[str, Any] = {
            "model_name_or_path": about["model"],
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "lora",
            "lora_rank": about["rank"],
            "lora_alpha": about["alpha"],
            "lora_target": "all",
            "dataset": "rows",
            "dataset_dir": scratch,
            "template": "smollm2",
            "cutoff_len": 1024,
            "packing": about["packing"],
            "output_dir": str(data / "out"),
            "per_device_train_batch_size": about["batch"],
            "gradient_accumulation_steps": 1,
            "learning_rate": about["rate"],
            "num_train_epochs": about["epochs"],
            "disable_gradient_checkpointing": True,
            "use_cpu": True,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }
        run_exp(settings, [clock])
    line = {
        **clock.told(),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
