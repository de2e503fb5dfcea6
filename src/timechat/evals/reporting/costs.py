"""What a run cost and how it was made, in words: the single values of `Report.run`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timechat.evals.figures import write_bytes, write_duration

COSTS = {
    "base": "Base model",
    "method": "Method",
    "trained_parameters": "Trained weights",
    "strength": "Adapter strength",
    "best": "Checkpoint",
    "steps": "Steps",
    "epochs": "Epochs",
    "batch_rows": "Rows a step",
    "learning_rate": "Learning rate",
    "train_seconds": "Training time",
    "predicted_train_seconds": "As predicted",
    "tokens": "Tokens trained",
    "tokens_per_second": "Tokens a second",
    "peak_bytes": "Peak memory",
    "questions_sha256": "Questions (SHA-256)",
}


def list_costs(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What `Report.run` tells in single values, worded: the known ones first, then the rest.

    Nested values are left to `report.json`.
    """
    names = [name for name in COSTS if name in run] + [name for name in run if name not in COSTS]
    return [
        (COSTS.get(name, name.replace("_", " ")), _write_cost(name, run[name]))
        for name in names
        if isinstance(run[name], str | int | float)
    ]


def _write_cost(name: str, value: str | float) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if name.endswith(("seconds", "_s")):
        return write_duration(value)
    if name.endswith("_bytes"):
        return write_bytes(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
