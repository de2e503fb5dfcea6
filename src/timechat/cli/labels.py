"""The annotation queue in the terminal: one item at a time, one key and Enter a verdict.

After the key of the better answer may stand in what it is better, a letter each.

Each answer is in the ledger before the next item is shown, so leaving at any moment loses nothing.
Who gets what, and what may be said, is `ledger.annotation`'s.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import click
from rich.markup import escape

from timechat.cli.display import console
from timechat.errors import LedgerError
from timechat.evals.statistics.agreement import Agreement
from timechat.ledger.annotation import Progress, Queue
from timechat.ledger.judging import TICKS, Item, Judgement

KEYS = {
    "judge": {"y": "right", "n": "wrong", "c": "correct", "k": "skip"},
    "choose": {"a": "A is better", "b": "B is better", "t": "as good", "n": "neither", "k": "skip"},
}
ALWAYS = {"u": "undo", "q": "leave"}
TICK_KEYS = {tick.removeprefix("more ")[0]: tick for tick in TICKS}


class _Left(Exception):  # noqa: N818 - not an error: the person is done
    """The person left the queue."""


def work(queue: Queue, annotator: str) -> Progress:
    """Serve the queue until it is empty or the person leaves."""
    item = queue.claim(annotator)
    try:
        while item is not None:
            item = _serve(queue, item, annotator)
        console.print("nothing is left for you here")
    except (_Left, EOFError, KeyboardInterrupt):
        console.print()
    return queue.progress(annotator)


def show_agreement(found: Sequence[Agreement]) -> None:
    """Each coefficient with its interval, what it stands on, and what to beware of."""
    for one in found:
        if one.value is None or one.observed is None:
            console.print(f"{escape(one.name)}: {one.note}")
            continue
        interval = f" [{one.ci95[0]:.2f}, {one.ci95[1]:.2f}]" if one.ci95 else ""
        basis = f"{one.items} items, {one.annotators} annotators, {one.clusters} clusters"
        text = f"{one.name}: {one.value:.2f}{interval}; {one.observed:.0%} agree; {basis}"
        console.print(escape(text + (f" ({one.note})" if one.note else "")))


def _serve(queue: Queue, item: Item, annotator: str) -> Item | None:
    """Show an item and take one verdict of it; returns what comes next."""
    progress = queue.progress(annotator)
    place = f" · {escape(item.group)}" if item.group else ""
    console.print(f"\n[bold]item {item.id}[/bold] · {progress.left} left for you{place}")
    order = item.shown_order(annotator)
    _show(item, order)
    keys = _keys(item)
    started = time.monotonic()
    while True:
        key, ticked = _split(item, _ask(_question(item, keys)))
        if key == "q":
            raise _Left
        if key == "u":
            before = queue.undo(annotator)
            if before is None:
                console.print("you have said nothing here yet")
                continue
            return before
        if key not in keys:
            console.print(f"no key {escape(repr(key))}", markup=True)
            continue
        said = _judge(queue, item, key, order)
        if said is None:
            continue
        verdict, value = said
        suggested = item.suggestions[-1].model if item.suggestions else None
        seconds = round(time.monotonic() - started, 1)
        try:
            ticks = _read_ticks(ticked) if item.task == "choose" and key != "k" else None
            queue.answer(
                Judgement(item.id, annotator, verdict, value, "", suggested, seconds, ticks=ticks),
            )
        except LedgerError as error:
            console.print(escape(str(error)))
            continue
        return queue.claim(annotator)


def _question(item: Item, keys: dict[str, str]) -> str:
    asked = " ".join(f"[{key}] {what}" for key, what in keys.items())
    if item.task == "choose":
        ticks = ", ".join(f"{key} {tick}" for key, tick in TICK_KEYS.items())
        asked += f"\nafter a or b, in what it is better ({ticks}), such as: b cs"
    return f"{asked} > "


def _split(item: Item, text: str) -> tuple[str, str]:
    """The key, and what was ticked after it where there is something to tick."""
    key, _, ticked = text.partition(" ")
    return (key, ticked) if item.task == "choose" and key in ("a", "b") else (text, "")


def _read_ticks(text: str) -> tuple[str, ...]:
    keys = [key for key in text.lower() if key not in " ,"]
    if unknown := next((key for key in keys if key not in TICK_KEYS), None):
        known = ", ".join(f"{key} is {tick}" for key, tick in TICK_KEYS.items())
        raise LedgerError(f"no tick {unknown!r} ({known})")
    return tuple(TICK_KEYS[key] for key in dict.fromkeys(keys))


def _keys(item: Item) -> dict[str, str]:
    keys = dict(KEYS[item.task])
    if item.task == "judge" and not item.answers:
        keys = {"c": "write the answer", "k": "skip"}
    if item.task == "judge" and item.suggestions:
        keys["s"] = "take the suggestion"
    return keys | ALWAYS


def _judge(
    queue: Queue, item: Item, key: str, order: Sequence[int]
) -> tuple[str, str | None] | None:
    """The verdict and value behind a key; None when the person thought better of it."""
    if key == "k":
        return "skip", None
    if item.task == "choose":
        if key in ("a", "b"):
            return ("first", "second")[order[0 if key == "a" else 1]], None
        return {"t": "tie", "n": "neither"}[key], None
    if key in ("y", "n"):
        return {"y": "right", "n": "wrong"}[key], None
    value = item.suggestions[-1].value if key == "s" else _write(queue, item)
    if not value:
        return None
    is_same = bool(item.answers) and value == item.answers[0].text
    return ("right", None) if is_same else ("corrected", value)


def _write(queue: Queue, item: Item) -> str:
    """A corrected answer: a label by name or number, a text in the editor, or one line of it."""
    if queue.labels:
        return _choose_label(queue.labels)
    before = item.answers[0].text if item.answers else ""
    if sys.stdin.isatty():
        written = click.edit(before)
        return "" if written is None else written.strip()
    return input().strip()


def _choose_label(labels: Sequence[str]) -> str:
    width = len(str(len(labels)))
    shown = [f"{number:>{width}} {label}" for number, label in enumerate(labels, 1)]
    console.print("  ".join(shown), markup=False)
    text = _ask("label, its number, or its beginning > ")
    if text.isdigit() and 1 <= int(text) <= len(labels):
        return labels[int(text) - 1]
    matching = [label for label in labels if label.casefold().startswith(text.casefold())]
    if text in labels or len(matching) == 1:
        return text if text in labels else matching[0]
    console.print(f"{len(matching)} labels begin with {text!r}", markup=False)
    return ""


def _show(item: Item, order: Sequence[int]) -> None:
    for message in item.prompt:
        console.print(f"[dim]{message.role:>9}[/dim]  {_plain(message.content)}")
    if item.task == "choose":
        for letter, index in zip("AB", order, strict=True):
            console.print(f"[bold]{letter:>9}[/bold]  {_plain(item.answers[index].text)}")
        return
    for answer in item.answers:
        console.print(f"[bold]   answer[/bold]  {_plain(answer.text)}")
    for suggestion in item.suggestions:
        by = escape(suggestion.model)
        console.print(f"[yellow]suggested by the model {by}[/yellow]  {_plain(suggestion.value)}")


def _plain(text: str) -> str:
    """Text as it is, on lines of its own column; control characters cannot drive the terminal."""
    kept = "".join(c if c.isprintable() or c == "\n" else "�" for c in text)
    return escape(kept).replace("\n", "\n           ")


def _ask(question: str) -> str:
    console.print(question, end="", markup=False)
    return input().strip()
