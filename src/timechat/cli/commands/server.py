"""A server's fine-tuning jobs and keys."""

from __future__ import annotations

from pathlib import Path

import click

from timechat.cli.options import JSON, LEDGER, emit


@click.command()
@click.argument("state", type=click.Path(path_type=Path))
@click.argument("job", required=False)
@click.option("--cancel", "verb", flag_value="cancel", help="End the job.")
@click.option("--pause", "verb", flag_value="pause", help="Let the job wait.")
@click.option("--resume", "verb", flag_value="resume", help="Let a paused job go on.")
@LEDGER
@JSON
def jobs(state: Path, job: str | None, verb: str | None, ledger: str | None, as_json: bool) -> None:
    """List the fine-tuning jobs of a server, follow one with its curve, or steer it.

    \b
    timechat jobs state
    timechat jobs state ftjob-1234
    timechat jobs state ftjob-1234 --cancel
    """
    from timechat.cli.jobs import find_job, follow, open_jobs, show_jobs

    opened = open_jobs(state, ledger)
    if job is None:
        if verb is not None:
            raise click.UsageError(f"--{verb} needs a job: timechat jobs {state} JOB --{verb}")
        found = opened.list()
        show_jobs(found)
        emit(found, as_json)
        return
    one = find_job(opened, job)
    one = follow(opened, one) if verb is None else getattr(opened, verb)(one.id)
    show_jobs([one])
    emit(one, as_json)


@click.command()
@click.argument("state", type=click.Path(path_type=Path))
@click.option("--create", metavar="PROJECT", help="Make a key; it is shown this once.")
@click.option("--revoke", metavar="KEY", help="End a key, by itself or its beginning.")
@LEDGER
@JSON
def keys(
    state: Path, create: str | None, revoke: str | None, ledger: str | None, as_json: bool
) -> None:
    """List, make and revoke the API keys of a server, each of a project.

    What belongs to one project is invisible to the others. A running server follows in seconds.

    \b
    timechat keys state --create support
    timechat keys state --revoke sk-Ab3xYz
    """
    from timechat.cli.jobs import show_keys
    from timechat.ledger.database import LEDGER_FILE, open_ledger
    from timechat.ledger.keys import create_key, list_keys, revoke_key

    if ledger is None:
        state.mkdir(parents=True, exist_ok=True)
    opened = open_ledger(ledger or state / LEDGER_FILE)
    if revoke is not None:
        revoke_key(opened, revoke)
    if create is not None:
        click.echo(create_key(opened, create))
        return
    found = list_keys(opened)
    show_keys(found)
    emit(found, as_json)
