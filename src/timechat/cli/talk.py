"""The terminal chat: streams an answer, keeps the conversation, survives Ctrl-C."""

from __future__ import annotations

import json
import sys
import time

import click

from timechat.cli.display import console
from timechat.conversation import Message
from timechat.engine.blocking import BlockingResponder
from timechat.engine.protocol import Ending, Sampling
from timechat.stages.serving.chat import open_responder

HELP = "/new starts over, /quit leaves, Ctrl-C stops an answer"


def talk(
    model: str, system: str, prompt: str | None, temperature: float, max_tokens: int, as_json: bool
) -> None:
    """Answer `prompt` and leave, or converse until the end of input."""
    with open_responder(model, lambda text: console.print(text, markup=False)) as responder:
        _talk(responder, system, prompt, temperature, max_tokens, as_json)


def _talk(
    responder: BlockingResponder,
    system: str,
    prompt: str | None,
    temperature: float,
    max_tokens: int,
    as_json: bool,
) -> None:
    sampling = Sampling(temperature=temperature, max_new_tokens=max_tokens)
    opening = [Message("system", system)] if system else []
    if prompt is not None:
        text = _answer(responder, [*opening, Message("user", prompt)], sampling, quiet=as_json)
        if as_json:
            ending = responder.ending.value if responder.ending is not None else None
            click.echo(json.dumps({"answer": text, "ending": ending}, ensure_ascii=False))
        return
    console.print(f"[dim]{HELP}[/dim]")
    _converse(responder, opening, sampling)


def _converse(responder: BlockingResponder, opening: list[Message], sampling: Sampling) -> None:
    messages = list(opening)
    while True:
        try:
            console.print("[bold]you[/bold] ", end="")
            line = input().strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if line in ("/quit", "/exit"):
            return
        if line == "/new":
            messages = list(opening)
            console.print("[dim]a new conversation[/dim]")
        elif line:
            messages.append(Message("user", line))
            text = _answer(responder, messages, sampling)
            if text:
                messages.append(Message("assistant", text))
            else:
                messages.pop()  # nothing was said, so nothing was asked


def _answer(
    responder: BlockingResponder, messages: list[Message], sampling: Sampling, quiet: bool = False
) -> str:
    """Stream one answer to standard output; returns what was said, whole or stopped."""
    said: list[str] = []
    started = time.perf_counter()
    first = 0.0
    stream = responder.reply(messages, sampling)
    try:
        for piece in stream:
            first = first or time.perf_counter() - started
            said.append(piece)
            if not quiet:
                sys.stdout.write(piece)
                sys.stdout.flush()
    except KeyboardInterrupt:
        responder.ending = Ending.CANCELLED
    if not quiet:
        sys.stdout.write("\n")
        sys.stdout.flush()
        seconds = time.perf_counter() - started
        console.print(f"[dim]first word after {first:.2f} s, {seconds:.1f} s in all[/dim]")
    return "".join(said).strip()
