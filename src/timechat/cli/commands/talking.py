"""Talking to models: in the terminal, and for every program that speaks the API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from timechat.cli.options import JSON


@click.command()
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
    timechat chat http://127.0.0.1:8000/v1#demo
    """
    from timechat.cli.talk import talk

    talk(model, system, prompt, temperature, max_tokens, as_json)


@click.command()
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
    type=click.Choice(["auto", "llama", "openvino", "torch"]),
    default="auto",
    show_default=True,
    help="auto: openvino, else llama (llama.cpp) where it is installed, else torch; each where it"
    " knows the model.",
)
@click.option(
    "--bits",
    type=click.Choice(["8", "4"]),
    default="8",
    show_default=True,
    help="Of llama and openvino.",
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
@click.option(
    "--at-once",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="How many fine-tuning jobs train at once, where their plans fit into the memory.",
)
@click.option(
    "--quota",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    metavar="GIB",
    help="What the files of a project may take, with --state.",
)
@click.option(
    "--requests-per-minute",
    type=click.IntRange(1),
    metavar="N",
    help="How often a key may ask [no bound].",
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
    at_once: int,
    quota: int,
    requests_per_minute: int | None,
) -> None:
    """Serve models to every program that speaks OpenAI's API, and to people as a chat page.

    \b
    timechat serve runs/demo
    timechat serve starter runs/demo runs/demo@step-40 --port 8001
    timechat serve runs/demo --host 0.0.0.0 --api-key "$KEY"
    timechat serve starter --state state
    timechat serve http://10.0.0.5:8000/v1#llama-7b
    timechat serve gpt-4.1-nano=starter --state state
    """
    from timechat.cli.display import console
    from timechat.ledger.database import LEDGER_FILE, default_ledger, open_ledger
    from timechat.ledger.keys import valid_keys
    from timechat.serve.keys import Keys
    from timechat.serve.run import run
    from timechat.serve.settings import Limits, Settings
    from timechat.serve.tuning import Tuning
    from timechat.stages.serving.serve import find_models

    def say(text: str) -> None:
        console.print(text, markup=False)

    limits = Limits(requests_per_minute=requests_per_minute)
    settings = Settings(host, port, hosts, origins, limits)
    found = find_models(models, say, engine, 4 if bits == "4" else 8)
    keys = Keys(api_keys)
    if state is not None:
        state.mkdir(parents=True, exist_ok=True)
    kept = open_ledger(ledger or (state / LEDGER_FILE if state else default_ledger()))
    tuning = Tuning(state, kept, found, say, at_once, quota << 30) if state is not None else None
    keys.adopt(valid_keys(kept) if state is not None else {})
    settings.check(len(keys))
    run(found, settings, keys, say, ledger=kept, tuning=tuning)
