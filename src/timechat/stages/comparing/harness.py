"""Tasks of lm-evaluation-harness beside our own measures, asked of two local models.

A task is one of the harness's names, or a YAML file of one's own. Every document of it is asked of
both models, and their scores are paired like all others: a loss is held against the same margin.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from timechat.errors import DataError, RecipeError
from timechat.evals.statistics.compare import compare
from timechat.model.load import Loaded
from timechat.records import Measure, Score
from timechat.stages.watch import Watcher

INSTALL = 'tasks of lm-evaluation-harness need it: pip install "timechat[harness]"'
_NAME = re.compile(r"^task:\s*['\"]?([\w.-]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the harness says of one model: its own figures, each document's scores by measure,
    whether more is better, and how many requests had to be cut to the model's window."""

    figures: dict[str, dict[str, float]]
    scores: dict[str, list[Score]]
    higher: dict[str, bool]
    cut: int


def check_tasks(tasks: Sequence[str]) -> None:
    """Raises RecipeError where the harness or a task's file is not there."""
    if find_spec("lm_eval") is None:
        raise RecipeError(INSTALL)
    for task in tasks:
        if _is_file(task) and not _NAME.search(_text(Path(task))):
            raise RecipeError(f"{task} names no task: a task of the harness begins with `task: …`")


def ask_harness(loaded: Loaded, tasks: Sequence[str], watcher: Watcher, label: str) -> Asked:
    """Ask one model every document of the tasks. Raises DataError for a task that cannot run."""
    # The harness and what it stands on take seconds to import: only who asks for it pays.
    from lm_eval.evaluator import simple_evaluate

    from timechat.evals.questions.harness import HarnessModel

    found = _load(tasks)
    tick = watcher.track(f"{label}: {', '.join(found)}", 0)
    model = HarnessModel(loaded.model, loaded.tokenizer, loaded.source.name, tick)
    # Intervals are ours, by the same rule as everywhere: the harness's bootstrap is left out.
    given = simple_evaluate(model, tasks=list(found.values()), bootstrap_iters=0)
    results: dict[str, Any] = dict(given or {})
    scores: dict[str, list[Score]] = {}
    higher: dict[str, bool] = {}
    for task, samples in results["samples"].items():
        for sample in samples:
            for name, value in _values(sample):
                key = f"{task}: {name}"
                item = f"{task} {sample['doc_id']}"
                scorer = f"{name} of lm-evaluation-harness {version('lm_eval')}"
                scores.setdefault(key, []).append(Score(item, item, value, scorer))
                more = results.get("higher_is_better", {}).get(task, {})
                higher[key] = more.get(name.partition(",")[0]) is not False
    return Asked(_figures(results["results"]), scores, higher, model.cut)


def weigh_harness(
    before: Asked, after: Asked, margin: float
) -> tuple[list[Measure], dict[str, Any], list[str]]:
    """The paired measures, what stands in the report's details, and what a reader should know."""
    measures = [
        compare(
            f"harness, {key}",
            old,
            after.scores[key],
            kind="retention",
            higher_is_better=before.higher[key],
            margin=margin,
            unit="share" if _are_shares(old, after.scores[key]) else "",
        )
        for key, old in before.scores.items()
    ]
    details = {
        "version": version("lm_eval"),
        "before": before.figures,
        "after": after.figures,
    }
    findings = [f"{m.name} was lost" for m in measures if m.verdict == "lost"]
    if cut := max(before.cut, after.cut):
        findings.append(f"{cut} requests of the harness were cut to the model's window, as it does")
    return measures, details, findings


def _load(tasks: Sequence[str]) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    files = [Path(task) for task in tasks if _is_file(task)]
    names = [_named(task) for task in tasks]
    # Indexing the harness's own tasks takes a while: only where one of them is named.
    manager = TaskManager(
        include_path=sorted({str(file.resolve().parent) for file in files}) or None,
        include_defaults=len(files) < len(tasks),
    )
    try:
        return dict(manager.load(names)["tasks"])
    except Exception as error:  # whatever a task's file, its code or its download may raise
        raise DataError(
            f"the harness cannot load {', '.join(names)}: {type(error).__name__}: {error}"[:500]
        ) from None


def _named(task: str) -> str:
    if not _is_file(task):
        return task
    found = _NAME.search(_text(Path(task)))
    assert found is not None
    return found[1]


def _is_file(task: str) -> bool:
    return task.endswith((".yaml", ".yml"))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"--harness {os.fspath(file)} cannot be read: {error}") from None


def _values(sample: dict[str, Any]) -> list[tuple[str, float]]:
    """A document's scores that are one number each; the others only the harness can sum up."""
    kept: list[tuple[str, float]] = []
    for name in sample.get("metrics", ()):
        with suppress(TypeError, ValueError, KeyError):
            kept.append((f"{name},{sample['filter']}".removesuffix(",none"), float(sample[name])))
    return kept


def _figures(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {
        task: {
            name.removesuffix(",none"): float(value)
            for name, value in row.items()
            if isinstance(value, int | float) and "stderr" not in name and "," in name
        }
        for task, row in results.items()
    }


def _are_shares(*sides: Sequence[Score]) -> bool:
    return all(0 <= score.value <= 1 for side in sides for score in side)
