"""`timechat learn`: what it learned and what it kept, in plain words."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from timechat.cli.display import Display, console
from timechat.cli.signals import STOP
from timechat.errors import RecipeError
from timechat.stages.learning.learn import learn
from timechat.stages.learning.verdict import SINCE
from timechat.stages.runs.versions import Version, go_back, take_offered


def work(run: Path, seed: int, is_yes: bool, is_strict: bool, as_json: bool) -> None:
    """Learn, and with `is_yes` take the version where it is offered."""
    version = learn(run, Display(), STOP, seed)
    show_version(version)
    if version.decision == "offered" and is_yes:
        take_offered(run)
        console.print(f"{run} answers from {version.name} now", markup=False)
    if as_json:
        click.echo(json.dumps(version.content, ensure_ascii=False))
    if is_strict and version.decision != "offered":
        sys.exit(3)


def move(run: Path, is_switch: bool, as_json: bool) -> None:
    """Take the offered version, or go back."""
    if is_switch:
        version = take_offered(run)
        console.print(f"{run} answers from {version.name} now", markup=False)
        answering = version.checkpoint
    else:
        answering = go_back(run)
        console.print(f"{run} answers from {answering} again", markup=False)
    if as_json:
        click.echo(json.dumps({"run": str(run), "answers_from": answering}, ensure_ascii=False))


def check_options(is_switch: bool, is_back: bool, is_yes: bool, is_strict: bool) -> None:
    if is_switch + is_back + is_yes > 1:
        raise RecipeError("give one of --yes, --switch and --back")
    if is_strict and (is_switch or is_back):
        raise RecipeError("--strict belongs to learning, not to --switch or --back")


def show_version(version: Version) -> None:
    """The three sets, each with its verdict, and what may be done now."""
    for line in lines(version):
        console.print(line, markup=False)
    console.print()
    if version.decision == "offered":
        console.print(
            f"It learned what it was told, and no loss of anything else was shown: {version.name}."
        )
        console.print(
            f"take it: timechat learn {version.run} --switch (and --back undoes that)", markup=False
        )
        return
    console.print(f"{version.name} is not offered; the model in use stays:", markup=False)
    for reason in version.content["reasons"]:
        console.print(f"  {reason}", markup=False)


def lines(version: Version) -> list[str]:
    sets: dict[str, Any] = version.content["sets"]
    told = sets["corrections"]
    made = f", {told['made_by_rule']} of them reworded by a rule" if told["made_by_rule"] else ""
    found = [
        f"corrections in other words: {told['right_before']} of {told['n']} right before, "
        f"{told['right_after']} now ({told['questions']} questions{made}): {told['verdict']}"
    ]
    for name, row in sets.items():
        if name == "corrections":
            continue
        since = " since the run was trained" if name.endswith(SINCE) else ""
        low, high = (100 * end for end in row["ci95"])
        found.append(
            f"{row['name']}{since}: {row['before']:.1%} to {row['after']:.1%} of {row['n']} "
            f"questions, {100 * row['difference']:+.1f} points [{low:+.1f}, {high:+.1f}]: "
            f"{row['verdict']}"
        )
    if version.content["contradicted"]:
        count = len(version.content["contradicted"])
        found.append(f"{count} rows of the run say what a correction took back: left out")
    return found
