"""The machine: what it can do."""

from __future__ import annotations

import click

from timechat.cli.options import JSON, emit


@click.command()
@JSON
def doctor(as_json: bool) -> None:
    """What this machine can do, and what is missing.

    \b
    timechat doctor
    """
    from timechat.cli.display import show_findings
    from timechat.stages.doctor import examine

    findings = examine()
    show_findings(findings)
    emit(findings, as_json)
