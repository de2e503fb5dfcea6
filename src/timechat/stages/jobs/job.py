"""What a fine-tuning job means: its files checked row by row, its recipe, its results.

The words are those of OpenAI's clients (`n_epochs`, `valid_loss`); the work behind them is this
project's own recipe and run. Running it is `worker`'s.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timechat.data.cleaning.steps import cleaning_steps
from timechat.data.sources import AS_THEY_STAND, open_sources
from timechat.data.verdicts import HARMLESS, Drop, clean
from timechat.errors import RecipeError, UserError, nearest
from timechat.ledger.jobs import Job
from timechat.recipe import Data, Recipe, parse_recipe
from timechat.store.files import read_json, read_lines

MIN_EXAMPLES = 10
OURS = {"n_epochs": "train.epochs", "batch_size": "train.batch_rows"}
MULTIPLIER = "learning_rate_multiplier"
# Where a job's own files, name and seed stand, or what is not the client's to choose.
NOT_OPEN = ("base", "data.train", "data.validation", "data.test", "data.prepared", "train.seed")
CSV_HEADER = (
    "step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy",
    "full_valid_loss",
)  # fmt: skip
# What the result file calls otherwise than events and checkpoints do.
SAME_IN_CSV = {"train_accuracy": "train_mean_token_accuracy"}
STEP_FOLDER = re.compile(r"step-(\d+)")


class JobError(UserError):
    """A job cannot go on; carries what clients find in its `error`."""

    def __init__(self, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param

    @property
    def row(self) -> dict[str, Any]:
        return {"code": self.code, "message": str(self), "param": self.param}


def check_hyperparameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters as they will be kept. Raises RecipeError naming what is wrong.

    OpenAI's three take "auto" or a number; beside them stand keys of our recipe by their full
    name (`adapt.rank`).
    """
    kept: dict[str, Any] = {"batch_size": "auto", MULTIPLIER: "auto", "n_epochs": "auto"}
    for key, value in given.items():
        if key == MULTIPLIER and value != "auto":
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not 0 < value <= 1000:
                raise RecipeError(f"{MULTIPLIER} = {value!r}: 'auto' or a number above 0")
        elif key in OURS and value != "auto" and type(value) is not int:
            raise RecipeError(f"{key} = {value!r}: 'auto' or a whole number")
        elif key not in kept and ("." not in key or key.startswith(NOT_OPEN)):
            raise RecipeError(f"unknown hyperparameter {key!r} ({nearest(key, _known())})")
        kept[key] = value
    parse_recipe(_sections(kept), where="hyperparameters")
    return kept


def write_recipe(job: Job, train: Path, validation: Path | None) -> dict[str, Any]:
    """The recipe of a job, as YAML's mapping."""
    raw = _sections(job.hyperparameters)
    raw["base"] = job.base
    raw.setdefault("data", {}).update(
        train=[str(train)], validation=[str(validation)] if validation else []
    )
    raw.setdefault("train", {})["seed"] = job.seed
    multiplier = job.hyperparameters.get(MULTIPLIER, "auto")
    if job.plan is not None and multiplier != "auto":
        raw["train"]["learning_rate"] = min(1.0, job.plan["learning_rate"] * float(multiplier))
    return raw


def check_rows(path: Path, param: str) -> int:
    """How many examples a file holds. Raises JobError naming the first lines that are none."""
    faults: list[str] = []
    count = 0
    source = open_sources([str(path)], Data())[0]
    steps = cleaning_steps(AS_THEY_STAND, texts=source.shape == "text")
    for row in source.rows():
        verdict = row.found if isinstance(row.found, Drop) else clean(row.found, steps)
        if not isinstance(verdict, Drop):
            count += 1
        elif verdict.reason not in HARMLESS:
            detail = f" ({verdict.detail})" if verdict.detail else ""
            faults.append(f"line {row.line}: {verdict.reason}{detail}")
    name = param.replace("_", " ")
    code = f"invalid_{param}"
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise JobError(
            f"The job failed due to a file format error in the {name}. Invalid file format. "
            f"{'; '.join(faults[:5])}{more}",
            code,
            param,
        )
    if param == "training_file" and count < MIN_EXAMPLES:
        raise JobError(
            f"The {name} has {count} example(s), but must have at least {MIN_EXAMPLES} examples",
            "invalid_n_examples",
            param,
        )
    if count == 0:
        raise JobError(f"The {name} has no examples", code, param)
    return count


def summarise_plan(plan: Mapping[str, Any]) -> dict[str, Any]:
    """What a client is told of a plan before the job starts."""
    names = ("train_seconds", "memory_bytes", "steps", "epochs", "batch_rows", "learning_rate",
             "rows", "row_tokens")  # fmt: skip
    return {name: plan["numbers"][name]["value"] for name in names}


def tuned_name(job: Job) -> str:
    """`ft:<base>:<org>:<suffix>:<id>`."""
    return f"ft:{job.model}:{job.project}:{job.suffix}:{job.id.removeprefix('ftjob-')[:10]}"


def checkpoint_name(job: Job, step: int) -> str:
    return f"{tuned_name(job)}:ckpt-step-{step}"


def find_checkpoints(run: Path) -> dict[int, Path]:
    """Step to folder of the run's whole checkpoints."""
    found: dict[int, Path] = {}
    for folder in sorted((run / "checkpoints").glob("step-*")):
        match = STEP_FOLDER.fullmatch(folder.name)
        if match and (folder / "manifest.json").is_file():
            found[int(match[1])] = folder
    return found


def metrics_of(step: int, rows: Mapping[int, Mapping[str, Any]]) -> dict[str, float]:
    """A step's figures under OpenAI's names: only those that were measured."""
    row = rows.get(step, {})
    found: dict[str, float] = {"step": float(step)}
    if "loss" in row:
        found["train_loss"] = float(row["loss"])
    if row.get("accuracy") is not None:
        found["train_mean_token_accuracy"] = float(row["accuracy"])
    if "validation_loss" in row:
        # The whole validation set is always asked, so both names hold the same figure.
        for name in ("valid_loss", "full_valid_loss"):
            found[name] = float(row["validation_loss"])
        for name in ("valid_mean_token_accuracy", "full_valid_mean_token_accuracy"):
            found[name] = float(row["validation_accuracy"])
    return found


def read_metrics(run: Path) -> dict[int, dict[str, Any]]:
    """Step to all that the run's log says of it."""
    rows: dict[int, dict[str, Any]] = {}
    path = run / "metrics.jsonl"
    for row in read_lines(path) if path.is_file() else ():
        rows.setdefault(int(row["step"]), {}).update(row)
    return rows


def write_results(rows: Mapping[int, Mapping[str, Any]]) -> str:
    """The result file of a job: CSV in OpenAI's columns, blank where nothing was measured."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for step in sorted(rows.keys() - {0}):  # 0 is the base, before the first step
        found = metrics_of(step, rows)
        names = (SAME_IN_CSV.get(name, name) for name in CSV_HEADER[1:])
        writer.writerow([step, *(found.get(name, "") for name in names)])
    return out.getvalue()


def tell_report(run: Path) -> tuple[str, dict[str, Any]]:
    """The report's sentence, and what a client's event carries of it."""
    report = read_json(run / "report.json")
    names = ("verdict", "task", "retention", "checks")
    return str(report["headline"]), {name: report[name] for name in names}


def _sections(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    raw: dict[str, Any] = {}
    for key, value in hyperparameters.items():
        if key == MULTIPLIER:
            continue
        place = raw
        *sections, name = OURS.get(key, key).split(".")
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return raw


def _known() -> list[str]:
    recipe = Recipe()
    names = [
        f"{section}.{name}"
        for section in ("data", "adapt", "train", "evaluate")
        for name in type(getattr(recipe, section)).model_fields
    ]
    return [*OURS, MULTIPLIER, *(name for name in names if not name.startswith(NOT_OPEN))]
