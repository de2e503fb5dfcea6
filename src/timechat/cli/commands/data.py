"""Rows: prepare them, look at them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from timechat.cli.options import JSON, emit, parse_columns


@click.command()
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The prepared folder.")
@click.option("--column", "columns", multiple=True, metavar="ROLE=NAME", help="Which column is it.")
@click.option("--shape", default="auto", help="What the rows are [told by looking].")
@click.option("--validation", multiple=True, metavar="FILE", help="Rows you held out yourself.")
@click.option("--test", multiple=True, metavar="FILE", help="Likewise.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any key of `data`.")
@click.option("--base", default="starter", help="Whose tokens clean.max_tokens counts [starter].")
@click.option("--look", is_flag=True, help="Only show what was recognised, with three rows.")
@click.option("--system", default="", help="System prompt of every row that brings none.")
@click.option("--seed", default=0, show_default=True, help="Of the split.")
@JSON
def prepare(
    inputs: tuple[Path, ...],
    out: Path | None,
    columns: tuple[str, ...],
    shape: str,
    validation: tuple[str, ...],
    test: tuple[str, ...],
    settings: tuple[str, ...],
    base: str,
    look: bool,
    system: str,
    seed: int,
    as_json: bool,
) -> None:
    """Read rows, tell what was kept and why the rest was not, split without leaks.

    \b
    timechat prepare chats.jsonl --out prepared
    timechat prepare reviews.csv --look
    timechat prepare reviews.csv --out prepared --column user=ReviewText --column assistant=Label
    timechat prepare faq.xlsx --out prepared --set clean.personal=replace --set clean.near=drop
    """
    from timechat.cli.display import Display, console
    from timechat.recipe import parse_recipe
    from timechat.recipe_file import apply_override
    from timechat.stages.preparing.prepare import prepare as run
    from timechat.stages.preparing.prepare import recognised

    raw: dict[str, Any] = {
        "data": {
            "train": [str(path) for path in inputs],
            "columns": parse_columns(columns),
            "shape": shape,
            "validation": list(validation),
            "test": list(test),
            "system": system,
            "seed": seed,
        }
    }
    for setting in settings:
        apply_override(raw, f"data.{setting}")
    data = parse_recipe(raw, where="prepare").data
    if look:
        found = recognised(data, Display().say)
        emit(found, as_json)
        return
    if out is None:
        raise click.UsageError("name the folder to leave the rows in with --out, or give --look")
    count = None
    if data.clean.max_tokens is not None:
        from timechat.stages.preparing.lengths import token_counter

        count = token_counter(base)
    prepared = run(data, out, Display().say, count)
    card = prepared.card
    splits = ", ".join(f"{count} {name}" for name, count in card.splits.items())
    console.print(f"{card.rows_in} rows in = {splits}, {card.rows_dropped} dropped", markup=False)
    for reason, count in sorted(card.reasons.items()):
        console.print(f"  dropped {count}: {reason}", markup=False)
    console.print(f"{out}: look at it with `timechat show {out}`", markup=False)
    emit(card, as_json)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--rows", default=3, show_default=True, help="How many rows to show.")
@click.option("--base", default="", help="The model that renders them: the run's, or starter.")
@JSON
def show(folder: Path, rows: int, base: str, as_json: bool) -> None:
    """Rendered rows of a prepared folder or a run: trained tokens and control tokens are marked.

    \b
    timechat show prepared --rows 5
    timechat show runs/demo
    """
    from timechat.cli.display import show_rows
    from timechat.stages.preparing.show import show as run

    shown = run(folder, rows, base)
    show_rows(shown)
    emit(shown, as_json)
