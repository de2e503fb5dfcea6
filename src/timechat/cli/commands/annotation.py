"""What people say of answers: judge, agree, collect."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Any

import click

from timechat.cli.options import JSON, LEDGER, emit, parse_columns


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--by", default=getpass.getuser, metavar="NAME", help="Who judges [your login].")
@click.option(
    "--add", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="Put the rows of a file in: rows, pairs, Label Studio's tasks, Argilla's records.",
)  # fmt: skip
@click.option("--column", "columns", multiple=True, metavar="ROLE=NAME", help="For files added.")
@click.option(
    "--task", type=click.Choice(["judge", "choose"]),
    help="Judge one answer or label, or choose the better of two [by what there is].",
)  # fmt: skip
@click.option("--label", "labels", multiple=True, metavar="NAME", help="The closed set of answers.")
@click.option("--annotators", type=int, metavar="N", help="How many people judge each item [1].")
@click.option("--suggest", "suggester", metavar="MODEL", help="Let a model suggest answers first.")
@LEDGER
@JSON
def annotate(
    folder: Path,
    by: str,
    add: tuple[Path, ...],
    columns: tuple[str, ...],
    task: Any,
    labels: tuple[str, ...],
    annotators: int | None,
    suggester: str | None,
    ledger: str | None,
    as_json: bool,
) -> None:
    """Judge answers or labels, or choose the better of two, in the terminal.

    FOLDER is a prepared folder, a run (its answers before and after), a folder of rows, or a new
    one with --add. Every verdict is kept at once; leave and come back as you like.

    \b
    timechat annotate prepared --by ann
    timechat annotate runs/demo --by ben
    timechat annotate labels --add reviews.csv --column user=ReviewText --annotators 2
    """
    from timechat.cli.display import Display, console
    from timechat.cli.labels import work
    from timechat.ledger.judging import check_name
    from timechat.stages.annotating.annotate import open_folder, suggest

    by = check_name(by)
    opened = open_folder(
        folder,
        ledger=ledger,
        add=add,
        columns=parse_columns(columns),
        task=task,
        labels=labels,
        annotators=annotators,
        watcher=Display(),
    )
    if opened.added:
        console.print(f"{opened.added} items added", markup=False)
    if suggester is not None:
        count = suggest(opened.queue, suggester, Display())
        console.print(f"{suggester} suggested {count} answers", markup=False)
    progress = work(opened.queue, by)
    console.print(
        f"{progress.finished} of {progress.items} items finished, {progress.mine} judged by {by}, "
        f"{progress.left} left for {by}",
        markup=False,
    )
    console.print(f"next: timechat collect {folder} --as rows --out rows.jsonl", markup=False)
    emit(progress, as_json)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@LEDGER
@JSON
def agreement(folder: Path, ledger: str | None, as_json: bool) -> None:
    """How far the annotators of a folder agree beyond chance, each figure with its interval.

    \b
    timechat agreement prepared
    """
    from timechat.cli.labels import show_agreement
    from timechat.stages.annotating.annotate import measure_agreement, reopen

    found = measure_agreement(reopen(folder, ledger))
    show_agreement(found)
    emit(found, as_json)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--as",
    "shape",
    default="rows",
    show_default=True,
    help="rows, pairs, csv, label-studio or argilla.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The file to write.")
@LEDGER
@JSON
def collect(folder: Path, shape: str, out: Path, ledger: str | None, as_json: bool) -> None:
    """Turn what was annotated into training rows, preference pairs or another tool's file.

    \b
    timechat collect prepared --as rows --out rows.jsonl
    timechat collect runs/demo --as pairs --out pairs.jsonl
    """
    from timechat.cli.display import console
    from timechat.stages.annotating.annotate import reopen
    from timechat.stages.annotating.collect import collect as run

    done = run(reopen(folder, ledger), shape, out)
    left = "".join(f", {count} left out: {why}" for why, count in done.left_out.items())
    console.print(f"{done.written} written of {done.items} items{left}", markup=False)
    console.print(" ".join(done.files), markup=False)
    emit(done, as_json)
