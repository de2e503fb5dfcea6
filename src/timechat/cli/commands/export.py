"""The way out: a model for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from timechat.cli.options import JSON, emit


@click.command()
@click.argument("model")
@click.option("--format", "form", required=True, metavar="FORMAT", help="adapter, merged or gguf.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="A folder, or FILE.gguf."
)
@click.option("--quantize", default="", metavar="TYPE", help="Of a gguf [q8_0]: f32 to q4_0.")
@click.option("--measure", is_flag=True, help="What the format costs, on task and retention.")
@JSON
def export(model: str, form: str, out: Path, quantize: str, measure: bool, as_json: bool) -> None:
    """Write a model for other programs, if it answers from there as it was evaluated.

    \b
    timechat export runs/demo --format merged --out demo-merged
    timechat export runs/demo --format gguf --quantize q4_0 --out demo-gguf
    timechat export runs/demo@step-40 --format adapter --out demo-adapter
    """
    from timechat.cli.display import Display, show_export
    from timechat.stages.exporting.export import export as run

    done = run(model, form, out, quantize, measure, Display())
    show_export(done)
    emit(done, as_json)
