"""The commands. Each imports its verb only when called, so `timechat --help` is instant."""

from __future__ import annotations

import errno
import getpass
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from timechat.cli import signals
from timechat.cli.signals import STOP
from timechat.errors import StoppedError, TimeChatError, nearest

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


class Commands(click.Group):
    """Unknown commands are answered with the nearest known one."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise click.UsageError(f"no command {args[0]!r}: {nearest(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="timechat")
def cli() -> None:
    """Turn an open language model into your own chatbot, and prove that it got better.

    \b
    timechat demo                      the whole story on the starter model
    timechat train recipe.yaml         your own data
    timechat chat runs/demo            talk to what was made
    """


@cli.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True
)
@STRICT
@JSON
def demo(out: Path, strict: bool, as_json: bool) -> None:
    """The whole story on the starter model and the shipped data.

    \b
    timechat demo
    timechat demo --out /tmp/first
    """
    from timechat.cli.display import Display
    from timechat.recipe import load_recipe
    from timechat.shipped import shipped
    from timechat.stages.train import train as run

    recipe = load_recipe(shipped("helpdesk/recipe.yaml"))
    finished = run(recipe, out, Display(), STOP)
    _finish(finished.report, out, strict, as_json)


@cli.command()
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
    from timechat.recipe import apply_override, parse_recipe
    from timechat.stages.prepare import prepare as run
    from timechat.stages.prepare import recognised

    raw: dict[str, Any] = {
        "data": {
            "train": [str(path) for path in inputs],
            "columns": _columns(columns),
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
        _emit(found, as_json)
        return
    if out is None:
        raise click.UsageError("name the folder to leave the rows in with --out, or give --look")
    count = None
    if data.clean.max_tokens is not None:
        from timechat.stages.lengths import token_counter

        count = token_counter(base)
    prepared = run(data, out, Display().say, count)
    card = prepared.card
    splits = ", ".join(f"{count} {name}" for name, count in card.splits.items())
    console.print(f"{card.rows_in} rows in = {splits}, {card.rows_dropped} dropped", markup=False)
    for reason, count in sorted(card.reasons.items()):
        console.print(f"  dropped {count}: {reason}", markup=False)
    console.print(f"{out}: look at it with `timechat show {out}`", markup=False)
    _emit(card, as_json)


@cli.command()
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
    from timechat.stages.show import show as run

    shown = run(folder, rows, base)
    show_rows(shown)
    _emit(shown, as_json)


@cli.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@JSON
def plan(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """What a run will take and at which settings, each with its rule; trains nothing.

    \b
    timechat plan recipe.yaml
    timechat plan recipe.yaml adapt.rank=32 train.epochs=3
    """
    from timechat.cli.display import Display
    from timechat.recipe import load_recipe
    from timechat.stages.train import preview

    _emit(preview(load_recipe(recipe, overrides), Display()), as_json)


@cli.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder [runs/RECIPE].")
@ALLOW
@STRICT
@JSON
def train(
    recipe: Path,
    overrides: tuple[str, ...],
    out: Path | None,
    allow: tuple[str, ...],
    strict: bool,
    as_json: bool,
) -> None:
    """Prepare if needed, train, evaluate; ends with the six lines and a verdict.

    A run that exists in the folder is continued. Ctrl-C or SIGTERM once saves and ends.

    \b
    timechat train recipe.yaml
    timechat train recipe.yaml train.epochs=3 adapt.rank=32 --out runs/three
    """
    from timechat.cli.display import Display
    from timechat.recipe import load_recipe
    from timechat.stages.train import train as run

    folder = out or Path("runs") / recipe.stem
    finished = run(load_recipe(recipe, overrides), folder, Display(), STOP, allow)
    _finish(finished.report, folder, strict, as_json)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@ALLOW
@STRICT
@JSON
def resume(run: Path, allow: tuple[str, ...], strict: bool, as_json: bool) -> None:
    """Go on with a run from its newest whole checkpoint, to the bytes it would have ended in.

    \b
    timechat resume runs/demo
    timechat resume runs/demo --allow data
    """
    from timechat.cli.display import Display
    from timechat.stages.train import resume as go_on

    _finish(go_on(run, Display(), STOP, allow).report, run, strict, as_json)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("runs"))
@JSON
def runs(folder: Path, as_json: bool) -> None:
    """List runs with their state, verdict, checkpoints and size.

    \b
    timechat runs
    timechat runs elsewhere --json
    """
    from timechat.cli.display import show_runs
    from timechat.stages.runs import list_runs

    found = list_runs(folder)
    show_runs(found, folder)
    _emit(found, as_json)


@cli.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN[@step-N]...")
@click.option("--yes", is_flag=True, help="Do not ask.")
def rm(names: tuple[str, ...], yes: bool) -> None:
    """Delete runs, or single checkpoints; never one in use, the best, or a pinned one.

    \b
    timechat rm runs/first
    timechat rm runs/demo@step-40 --yes
    """
    from timechat.stages.runs import parse, remove

    for name in names:
        parse(name)  # every name is good before the first is deleted
    if not yes:
        click.confirm(f"delete {', '.join(names)}?", abort=True, err=True)
    for name in names:
        click.echo(f"deleted {name}: {remove(name) / 1e6:,.1f} MB free again", err=True)


@cli.command()
@click.argument("name", metavar="RUN@step-N")
@click.option("--remove", is_flag=True, help="Leave it to the rule again.")
def pin(name: str, remove: bool) -> None:
    """Keep a checkpoint whatever comes: training deletes all but the newest two and the best.

    \b
    timechat pin runs/demo@step-40
    timechat pin runs/demo@step-40 --remove
    """
    from timechat.stages.runs import pin as keep

    folder = keep(name, not remove)
    click.echo(f"{folder} {'is no longer pinned' if remove else 'stays'}", err=True)


@cli.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--questions", type=click.Path(path_type=Path), help="Rows; last turn = reference.")
@click.option("--system", default="", help="System prompt of questions that bring none.")
@click.option("--arms", default="", help="Of prompt,few-shot,retrieval,tuned-retrieval.")
@click.option(
    "--documents", type=click.Path(path_type=Path), help="What retrieval looks things up in."
)
@click.option("--hosted", default="", metavar="URL#MODEL", help="One more arm: a hosted model.")
@click.option("--judge", default="", metavar="URL#MODEL", help="A model that judges the pairs.")
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
    hosted: str,
    judge: str,
    wanted: str,
    offline: bool,
    out: Path | None,
    strict: bool,
    as_json: bool,
) -> None:
    """Before and after of a run again, or any two models on any questions.

    Arms ask whether training was needed: the base with a good prompt, with training examples in
    the prompt, with documents to look things up in. Endpoints take their key from
    TIMECHAT_API_KEY or OPENAI_API_KEY.

    \b
    timechat compare runs/demo
    timechat compare starter runs/demo --questions mine.jsonl --out report
    timechat compare runs/demo --arms prompt,few-shot,retrieval --documents handbook/
    timechat compare runs/demo http://127.0.0.1:8000/v1#other --questions mine.jsonl
    """
    from timechat.cli.display import Display
    from timechat.stages.arms import parse_arms
    from timechat.stages.versus import Options, versus

    options = Options(
        parse_arms(arms, documents), documents, hosted, judge, _format(wanted), offline
    )
    report, folder = versus(models, questions, system, out, Display(), options)
    _finish(report, folder, strict, as_json)


@cli.command()
@click.argument("model")
@click.option("--system", default="", help="A system prompt of your own.")
@click.option("--prompt", help="Answer this one message and leave.")
@click.option("--temperature", default=0.0, show_default=True, help="0 takes the likeliest word.")
@click.option("--max-tokens", default=256, show_default=True, help="Longest answer.")
@JSON
def chat(
    model: str, system: str, prompt: str | None, temperature: float, max_tokens: int, as_json: bool
) -> None:
    """Talk to a model: streaming, with the conversation kept. Ctrl-C stops the answer.

    \b
    timechat chat starter
    timechat chat runs/demo
    timechat chat runs/demo@step-40 --prompt "When are you open?"
    """
    from timechat.cli.talk import talk

    talk(model, system, prompt, temperature, max_tokens, as_json)


@cli.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535))
@click.option(
    "--api-key",
    "api_keys",
    multiple=True,
    envvar="TIMECHAT_API_KEY",
    help="A key that callers must send; several may be given [$TIMECHAT_API_KEY].",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "openvino", "torch"]),
    default="auto",
    show_default=True,
    help="auto: openvino where it knows the model, else torch.",
)
@click.option(
    "--bits", type=click.Choice(["8", "4"]), default="8", show_default=True, help="Of openvino."
)
@click.option("--allow-host", "hosts", multiple=True, help="Another name of this server.")
@click.option("--allow-origin", "origins", multiple=True, help="A web page that may call it.")
@click.option(
    "--ledger",
    help="Where conversations and jobs are kept: an SQLite file or a postgresql:// URL"
    " [default: ledger.db in --state, in $TIMECHAT_DATA or the user's data folder].",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    help="Let clients fine-tune; their files and runs are kept in this folder.",
)
def serve(
    models: tuple[str, ...],
    host: str,
    port: int,
    api_keys: tuple[str, ...],
    engine: Any,
    bits: Any,
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
    ledger: str | None,
    state: Path | None,
) -> None:
    """Serve models to every program that speaks OpenAI's API, and to people as a chat page.

    \b
    timechat serve runs/demo
    timechat serve starter runs/demo runs/demo@step-40 --port 8001
    timechat serve runs/demo --host 0.0.0.0 --api-key "$KEY"
    timechat serve starter --state state
    """
    from timechat.cli.display import console
    from timechat.ledger.database import LEDGER_FILE, default_ledger, open_ledger
    from timechat.ledger.keys import valid_keys
    from timechat.serve.keys import Keys
    from timechat.serve.run import run
    from timechat.serve.settings import Settings
    from timechat.serve.tuning import Tuning
    from timechat.stages.serve import find_models

    def say(text: str) -> None:
        console.print(text, markup=False)

    settings = Settings(host, port, hosts, origins)
    found = find_models(models, say, engine, 4 if bits == "4" else 8)
    keys = Keys(api_keys)
    if state is not None:
        state.mkdir(parents=True, exist_ok=True)
    kept = open_ledger(ledger or (state / LEDGER_FILE if state else default_ledger()))
    tuning = Tuning(state, kept, found, say) if state is not None else None
    keys.adopt(valid_keys(kept) if state is not None else {})
    settings.check(len(keys))
    run(found, settings, keys, say, ledger=kept, tuning=tuning)


@cli.command()
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
    from timechat.stages.export import export as run

    done = run(model, form, out, quantize, measure, Display())
    show_export(done)
    _emit(done, as_json)


@cli.command()
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
    from timechat.ledger.annotation import check_name
    from timechat.stages.annotate import open_folder, suggest

    by = check_name(by)
    opened = open_folder(
        folder,
        ledger=ledger,
        add=add,
        columns=_columns(columns),
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
    _emit(progress, as_json)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@LEDGER
@JSON
def agreement(folder: Path, ledger: str | None, as_json: bool) -> None:
    """How far the annotators of a folder agree beyond chance, each figure with its interval.

    \b
    timechat agreement prepared
    """
    from timechat.cli.labels import show_agreement
    from timechat.stages.annotate import measure_agreement, reopen

    found = measure_agreement(reopen(folder, ledger))
    show_agreement(found)
    _emit(found, as_json)


@cli.command()
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
    from timechat.stages.annotate import reopen
    from timechat.stages.collect import collect as run

    done = run(reopen(folder, ledger), shape, out)
    left = "".join(f", {count} left out: {why}" for why, count in done.left_out.items())
    console.print(f"{done.written} written of {done.items} items{left}", markup=False)
    console.print(" ".join(done.files), markup=False)
    _emit(done, as_json)


@cli.command()
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
        _emit(found, as_json)
        return
    one = find_job(opened, job)
    one = follow(opened, one) if verb is None else getattr(opened, verb)(one.id)
    show_jobs([one])
    _emit(one, as_json)


@cli.command()
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
    _emit(found, as_json)


@cli.command()
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
    _emit(findings, as_json)


def main(arguments: list[str] | None = None) -> None:
    """The entry point: exit 0, 2 for a user's error, 130 and 143 for signals, 1 otherwise."""
    signals.install()
    try:
        status = cli.main(arguments, prog_name="timechat", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("stopped; `timechat resume RUN` goes on from the newest checkpoint", err=True)
        sys.exit(130)
    except StoppedError as stopped:
        click.echo(str(stopped), err=True)
        sys.exit(stopped.exit_status)
    except TimeChatError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_status)
    except Exception as error:
        if (advice := _advise(error)) is None:
            raise
        click.echo(f"error: {error}: {advice}", err=True)
        sys.exit(2)


def _advise(error: Exception) -> str | None:
    """What to do about a fault of the machine; None where it is ours."""
    # safetensors reports a full disk as an error of its own, with the system's words in it.
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
        return "free some space, then run the same command again; nothing half-written is kept"
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "name a folder that you may write to"
    return "see to it, then run the same command again" if isinstance(error, OSError) else None


def _format(wanted: str) -> str:
    """A format as the scorers read it: a file's text where one is named; refused if it is none."""
    from timechat.evals.texts import format_check

    file = Path(wanted)
    text = (
        file.read_text(encoding="utf-8") if wanted.endswith(".json") and file.is_file() else wanted
    )
    if text:
        format_check(text)
    return text


def _columns(pairs: tuple[str, ...]) -> dict[str, str]:
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


def _finish(report: Any, folder: Path, strict: bool, as_json: bool) -> None:
    from timechat.cli.display import show_report

    show_report(report, folder, _program())
    if as_json:
        content = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        click.echo(json.dumps(content, ensure_ascii=False))
    if strict and not (report.verdict == "improved" and all(c.passed for c in report.checks)):
        sys.exit(3)


def _program() -> str:
    """What to type to call this program again: its path, where the shell would not find it."""
    called = Path(sys.argv[0])
    if shutil.which("timechat") or called.name != "timechat":
        return "timechat"
    inside = called.is_absolute() and called.is_relative_to(Path.cwd())
    return str(called.relative_to(Path.cwd()) if inside else called)


def _emit(value: Any, as_json: bool) -> None:
    if as_json:
        from timechat.store import to_json

        click.echo(json.dumps(to_json(value), ensure_ascii=False))


if __name__ == "__main__":
    main()
