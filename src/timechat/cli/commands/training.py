"""Training: the demo, the plan, a run and its going on."""

from __future__ import annotations

from pathlib import Path

import click

from timechat.cli.options import ALLOW, JSON, STRICT, emit, finish, watch
from timechat.cli.signals import STOP


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True
)
@STRICT
@JSON
def demo(out: Path, strict: bool, as_json: bool) -> None:
    """The whole story on the starter model and the shipped data.

    \b
    timechat demo
    timechat demo --out /tmp/first
    """
    from timechat.cli.display import Display
    from timechat.recipe_file import load_recipe
    from timechat.shipped import shipped
    from timechat.stages.training.train import train as run

    recipe = load_recipe(shipped("helpdesk/recipe.yaml"))
    finished = run(recipe, out, Display(), STOP)
    finish(finished.report, out, strict, as_json)


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@JSON
def plan(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """What a run will take and at which settings, each with its rule; trains nothing.

    \b
    timechat plan recipe.yaml
    timechat plan recipe.yaml adapt.rank=32 train.epochs=3
    """
    from timechat.cli.display import Display
    from timechat.recipe_file import load_recipe
    from timechat.stages.training.train import preview

    emit(preview(load_recipe(recipe, overrides), Display()), as_json)


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder [runs/RECIPE].")
@ALLOW
@STRICT
@JSON
def train(
    recipe: Path,
    overrides: tuple[str, ...],
    out: Path | None,
    allow: tuple[str, ...],
    strict: bool,
    as_json: bool,
) -> None:
    """Prepare if needed, train, evaluate; ends with the six lines and a verdict.

    A run that exists in the folder is continued. Ctrl-C or SIGTERM once saves and ends.

    \b
    timechat train recipe.yaml
    timechat train recipe.yaml train.epochs=3 adapt.rank=32 --out runs/three
    torchrun --nproc-per-node 2 -m timechat train recipe.yaml
    """
    from timechat.recipe_file import load_recipe
    from timechat.stages.training.train import train as run

    folder = out or Path("runs") / recipe.stem
    finished = run(load_recipe(recipe, overrides), folder, watch(), STOP, allow)
    finish(finished.report, folder, strict, as_json)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@ALLOW
@STRICT
@JSON
def resume(run: Path, allow: tuple[str, ...], strict: bool, as_json: bool) -> None:
    """Go on with a run from its newest whole checkpoint, to the bytes it would have ended in.

    \b
    timechat resume runs/demo
    timechat resume runs/demo --allow data
    """
    from timechat.stages.training.train import resume as go_on

    finish(go_on(run, watch(), STOP, allow).report, run, strict, as_json)
