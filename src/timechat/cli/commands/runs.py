"""What runs leave behind: list, delete, keep."""

from __future__ import annotations

from pathlib import Path

import click

from timechat.cli.options import JSON, emit


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("runs"))
@JSON
def runs(folder: Path, as_json: bool) -> None:
    """List runs with their state, verdict, checkpoints and size.

    \b
    timechat runs
    timechat runs elsewhere --json
    """
    from timechat.cli.display import show_runs
    from timechat.stages.runs.listing import list_runs

    found = list_runs(folder)
    show_runs(found, folder)
    emit(found, as_json)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN[@step-N]...")
@click.option("--yes", is_flag=True, help="Do not ask.")
def rm(names: tuple[str, ...], yes: bool) -> None:
    """Delete runs, or single checkpoints; never one in use, the best, or a pinned one.

    \b
    timechat rm runs/first
    timechat rm runs/demo@step-40 --yes
    """
    from timechat.stages.runs.listing import parse, remove

    for name in names:
        parse(name)  # every name is good before the first is deleted
    if not yes:
        click.confirm(f"delete {', '.join(names)}?", abort=True, err=True)
    for name in names:
        click.echo(f"deleted {name}: {remove(name) / 1e6:,.1f} MB free again", err=True)


@click.command()
@click.argument("name", metavar="RUN@step-N")
@click.option("--remove", is_flag=True, help="Leave it to the rule again.")
def pin(name: str, remove: bool) -> None:
    """Keep a checkpoint whatever comes: training deletes all but the newest two and the best.

    \b
    timechat pin runs/demo@step-40
    timechat pin runs/demo@step-40 --remove
    """
    from timechat.stages.runs.listing import pin as keep

    folder = keep(name, not remove)
    click.echo(f"{folder} {'is no longer pinned' if remove else 'stays'}", err=True)
