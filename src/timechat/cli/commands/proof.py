"""Proof: any two models on any questions."""

from __future__ import annotations

from pathlib import Path

import click

from timechat.cli.options import JSON, STRICT, finish


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--questions", type=click.Path(path_type=Path), help="Rows; last turn = reference.")
@click.option("--system", default="", help="System prompt of questions that bring none.")
@click.option(
    "--arms", default="", help="Of prompt,few-shot,retrieval,bm25,dense,tuned-retrieval,strengths."
)
@click.option(
    "--documents", type=click.Path(path_type=Path), help="What retrieval looks things up in."
)
@click.option(
    "--embedder",
    default="base",
    help="What makes vectors of texts: base (its own hidden states) or minilm.",
)
@click.option("--hosted", default="", metavar="URL#MODEL", help="One more arm: a hosted model.")
@click.option("--judge", default="", metavar="URL#MODEL", help="A model that judges the pairs.")
@click.option(
    "--price",
    "prices",
    multiple=True,
    metavar="MODEL=IN/OUT/CURRENCY",
    help="What a million tokens of a hosted model cost, read and written; may be repeated.",
)
@click.option(
    "--retention",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Your own questions that must not be forgotten; may be repeated.",
)
@click.option(
    "--harness",
    multiple=True,
    metavar="TASK",
    help="A task of lm-evaluation-harness, by name or as a YAML file; may be repeated.",
)
@click.option(
    "--format", "wanted", default="", help="Answers should be json, regex:…, or a schema file."
)
@click.option("--offline", is_flag=True, help="Only recorded answers of endpoints; ask nothing.")
@click.option("--out", type=click.Path(path_type=Path), help="Where to leave the report.")
@STRICT
@JSON
def compare(
    models: tuple[str, ...],
    questions: Path | None,
    system: str,
    arms: str,
    documents: Path | None,
    embedder: str,
    hosted: str,
    judge: str,
    prices: tuple[str, ...],
    retention: tuple[Path, ...],
    harness: tuple[str, ...],
    wanted: str,
    offline: bool,
    out: Path | None,
    strict: bool,
    as_json: bool,
) -> None:
    """Before and after of a run again, or any two models or reports on the same questions.

    Arms ask whether training was needed: the base with a good prompt, with training examples in
    the prompt, with documents to look things up in (by words and meaning together, by words alone,
    by meaning alone). `strengths` asks the tuned model at 0 to 1.25 of what it learned. Two
    folders that --out left are compared by what they recorded, if they asked the same. Endpoints
    take their key from TIMECHAT_API_KEY or OPENAI_API_KEY.

    \b
    timechat compare runs/demo
    timechat compare starter runs/demo --questions mine.jsonl --out report
    timechat compare runs/demo --arms prompt,few-shot,retrieval --documents handbook/
    timechat compare runs/demo http://127.0.0.1:8000/v1#other --questions mine.jsonl
    timechat compare report-of-a report-of-b
    """
    from timechat.cli.display import Display
    from timechat.stages.comparing.arms import parse_arms
    from timechat.stages.comparing.compare import compare as run
    from timechat.stages.comparing.contest import Options
    from timechat.stages.comparing.documents import parse_embedder
    from timechat.stages.comparing.hosted import parse_prices

    options = Options(
        parse_arms(arms, documents),
        documents,
        hosted,
        judge,
        _format(wanted),
        offline,
        parse_prices(prices),
        parse_embedder(embedder),
        retention,
        harness,
    )
    report, folder = run(models, questions, system, out, Display(), options)
    finish(report, folder, strict, as_json)


def _format(wanted: str) -> str:
    """A format as the scorers read it: a file's text where one is named; refused if it is none."""
    from timechat.evals.scoring.texts import format_check

    file = Path(wanted)
    text = (
        file.read_text(encoding="utf-8") if wanted.endswith(".json") and file.is_file() else wanted
    )
    if text:
        format_check(text)
    return text
