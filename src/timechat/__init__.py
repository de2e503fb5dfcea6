"""TimeChat: turn an open model into your own chatbot, and prove that it got better.

The Python face says the same words as the command line:

    import timechat

    run = timechat.train("recipe.yaml")
    print(run.report.verdict)

Importing this is instant; a verb loads what it needs when it is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from timechat.engine.blocking import BlockingResponder
    from timechat.recipe import Recipe
    from timechat.records import Plan, Report
    from timechat.stages.preparing.prepare import Prepared
    from timechat.stages.preparing.show import Shown
    from timechat.stages.training.train import Run
    from timechat.stages.watch import Watcher

__all__ = ["chat", "compare", "plan", "prepare", "resume", "show", "train"]


def prepare(
    inputs: Iterable[str | Path],
    out: str | Path,
    columns: Mapping[str, str] | None = None,
    system: str = "",
    seed: int = 0,
) -> Prepared:
    """Read, clean and split the files `inputs` into the folder `out`.

    `columns` maps roles to column names of a CSV or TSV. Raises DataError.
    """
    from timechat.recipe import parse_recipe
    from timechat.stages.preparing.prepare import prepare as run

    data = {
        "train": [str(path) for path in inputs],
        "columns": dict(columns or {}),
        "system": system,
        "seed": seed,
    }
    return run(parse_recipe({"data": data}).data, Path(out), lambda _: None)


def show(folder: str | Path, rows: int = 3, base: str = "") -> list[Shown]:
    """The first rows of a prepared folder or a run in pieces: their text, their loss weight, and
    whether each is a control token. Without `base` the run's base renders them, or the starter."""
    from timechat.stages.preparing.show import show as run

    return run(Path(folder), rows, base)


def plan(recipe: Recipe | Mapping[str, Any] | str | Path) -> Plan:
    """What training this recipe will take, each number with its rule; trains nothing."""
    from timechat.stages.training.train import preview

    return preview(_recipe(recipe))


def train(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    out: str | Path | None = None,
    watcher: Watcher | None = None,
) -> Run:
    """Train, choose the best checkpoint and prove it; a run that exists in `out` is continued.

    `out` is `runs/` and the recipe's name when not given. Raises UserError before training for
    whatever the user can mend.
    """
    from timechat.stages.training.train import train as run

    name = Path(recipe).stem if isinstance(recipe, str | Path) else "run"
    return run(_recipe(recipe), Path(out) if out is not None else Path("runs") / name, watcher)


def resume(run: str | Path, watcher: Watcher | None = None) -> Run:
    """Go on with the run in a folder from its newest checkpoint."""
    from timechat.stages.training.train import resume as go_on

    return go_on(Path(run), watcher)


def compare(
    *models: str | Path,
    questions: str | Path | None = None,
    system: str = "",
    out: str | Path | None = None,
    watcher: Watcher | None = None,
) -> Report:
    """A run's before and after again (one name), or any two models on the same questions."""
    from timechat.stages.comparing.compare import compare as run
    from timechat.stages.watch import Watcher

    asked = Path(questions) if questions is not None else None
    place = Path(out) if out is not None else None
    names = [str(name) for name in models]
    return run(names, asked, system, place, watcher or Watcher())[0]


def chat(model: str | Path) -> BlockingResponder:
    """Load MODEL (`starter`, a run, `RUN@step-N`, a folder, a Hub id) to answer messages.

    Use it in a `with` block, or `close` it: the model runs in a process of its own.
    """
    from timechat.stages.serving.chat import open_responder

    return open_responder(str(model))


def _recipe(given: Recipe | Mapping[str, Any] | str | Path) -> Recipe:
    from timechat.recipe import Recipe, parse_recipe
    from timechat.recipe_file import load_recipe

    if isinstance(given, Recipe):
        return given
    if isinstance(given, Mapping):
        return parse_recipe(given)
    return load_recipe(Path(given))
