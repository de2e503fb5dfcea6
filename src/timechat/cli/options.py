"""Options that several commands share, and how their results leave: a report, or JSON."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import click

JSON = click.option("--json", "as_json", is_flag=True, help="One line of JSON on standard output.")
ALLOW = click.option(
    "--allow",
    multiple=True,
    metavar="WHAT",
    help="Go on although this changed since the run began: recipe, data or base.",
)
STRICT = click.option("--strict", is_flag=True, help="Exit 3 on a failed check or a bad verdict.")

LEDGER = click.option(
    "--ledger", envvar="TIMECHAT_LEDGER", metavar="URL", help="A database instead of a file inside."
)


def parse_columns(pairs: tuple[str, ...]) -> dict[str, str]:
    columns: dict[str, str] = {}
    for pair in pairs:
        role, equals, name = pair.partition("=")
        roles = (
            "system", "user", "assistant", "group", "id", "input", "rejected", "messages", "text",
        )  # fmt: skip
        if not equals or role not in roles:
            raise click.UsageError(
                f"--column {pair!r}: write ROLE=NAME, ROLE one of {', '.join(roles)}"
            )
        columns[role] = name
    return columns


def is_first() -> bool:
    """Whether this is the process, of those that torchrun started, that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def watch() -> Any:
    """The display of a run; nobody watches what the other ranks do."""
    from timechat.cli.display import Display
    from timechat.stages.watch import Watcher

    return Display() if is_first() else Watcher()


def finish(report: Any, folder: Path, strict: bool, as_json: bool) -> None:
    from timechat.cli.display import show_report

    if not is_first():
        return
    show_report(report, folder, _program())
    if as_json:
        content = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        click.echo(json.dumps(content, ensure_ascii=False))
    if strict and not (report.verdict == "improved" and all(c.passed for c in report.checks)):
        sys.exit(3)


def emit(value: Any, as_json: bool) -> None:
    if as_json:
        from timechat.store.files import to_json

        click.echo(json.dumps(to_json(value), ensure_ascii=False))


def _program() -> str:
    """What to type to call this program again: its path, where the shell would not find it."""
    called = Path(sys.argv[0])
    if shutil.which("timechat") or called.name != "timechat":
        return "timechat"
    inside = called.is_absolute() and called.is_relative_to(Path.cwd())
    return str(called.relative_to(Path.cwd()) if inside else called)
