"""What a run learns from its corrections, and the way there and back."""

from __future__ import annotations

from pathlib import Path

import click

from timechat.cli.options import JSON


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--yes", "is_yes", is_flag=True, help="Take the new version where it is offered.")
@click.option("--switch", "is_switch", is_flag=True, help="Take the version that was offered.")
@click.option("--back", "is_back", is_flag=True, help="Answer as before the version in use.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of the draws.")
@click.option("--strict", "is_strict", is_flag=True, help="Exit 3 where nothing is offered.")
@JSON
def learn(
    run: Path,
    is_yes: bool,
    is_switch: bool,
    is_back: bool,
    seed: int,
    is_strict: bool,
    as_json: bool,
) -> None:
    """Learn from the corrections in a run's queue, and offer what lost nothing else.

    The new version is compared with the one in use: on the corrections in other words, on the
    run's test set and on general questions. A server that serves the run follows each switch
    without dropping a conversation. Stopped or killed, it goes on when it is run again.

    \b
    timechat learn runs/demo
    timechat learn runs/demo --switch
    timechat learn runs/demo --back
    timechat learn runs/demo --yes --json
    """
    from timechat.cli import learn as show

    show.check_options(is_switch, is_back, is_yes, is_strict)
    if is_switch or is_back:
        show.move(run, is_switch, as_json)
    else:
        show.work(run, seed, is_yes, is_strict, as_json)
