"""What a person sees while a stage works: progress bars, the plan, watched answers, six lines.

Everything goes to standard error; standard output belongs to results.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from timechat.records import Plan, Report, StepRecord
from timechat.stages.doctor import Finding
from timechat.stages.exporting.export import Exported
from timechat.stages.preparing.show import Shown
from timechat.stages.runs.listing import Listed
from timechat.stages.watch import Watcher

console = Console(stderr=True, highlight=False, soft_wrap=True)
_MARKS = re.compile("[⟦⟧❰❱]")
# Control characters but tab and line break, and those that turn the direction of writing.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

SHOWN = (
    "parameters", "trained_parameters", "reading", "rows", "row_tokens", "epochs", "steps",
    "batch_rows", "micro_rows", "recompute", "trunk", "trunk_bytes", "learning_rate",
    "word_dropout", "alpha", "activation", "max_length", "memory_bytes", "train_seconds",
)  # fmt: skip


class Display(Watcher):
    """Shows what a stage says. On a terminal with live bars, else a line now and then."""

    def __init__(self) -> None:
        self.live = console.is_terminal
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        self._tokens = 0
        self._seconds = 0.0
        self._last_line = 0.0

    def say(self, text: str) -> None:
        self._close()
        console.print(escape(text))

    def planned(self, plan: Plan) -> None:
        table = Table(title="the plan", title_justify="left", box=None, pad_edge=False)
        for name in ("what", "value", "rule"):
            table.add_column(name, overflow="fold")
        for name in (name for name in SHOWN if name in plan.numbers and _tells(plan, name)):
            number = plan.numbers[name]
            table.add_row(name.replace("_", " "), _nice(name, number.value), number.rule)
        console.print(table)

    def track(self, label: str, total: int) -> Callable[[int], None]:
        self._close()
        if not self.live:
            console.print(escape(label))
            return lambda done: None
        progress = self._open(label, total)

        def tick(done: int) -> None:
            if self.task is not None:
                progress.advance(self.task, done)
                if progress.finished:
                    self._close()

        return tick

    def stepped(self, record: StepRecord, total: int) -> None:
        self._tokens += record.tokens
        self._seconds += record.elapsed_s
        rate = self._tokens / self._seconds
        left = (total - record.step) * self._seconds / max(1, record.step)
        text = f"step {record.step}/{total}  loss {record.loss:.3f}  {rate:.0f} tokens/s"
        if self.live:
            if self.progress is None:
                self._open(text, total)
            assert self.progress is not None
            assert self.task is not None
            self.progress.update(self.task, description=text, completed=record.step)
        elif time.monotonic() - self._last_line > 10 or record.step == total:
            self._last_line = time.monotonic()
            console.print(f"{text}  {left:.0f} s left")

    def validated(self, line: dict[str, Any]) -> None:
        self._close()
        console.print(
            f"[bold]step {line['step']}[/bold]  validation loss {line['validation_loss']:.3f}, "
            f"accuracy {line['validation_accuracy']:.1%}"
        )
        for sample in line["samples"]:
            console.print(f"  [dim]Q[/dim] {escape(_short(sample['question']))}")
            console.print(f"  [dim]A[/dim] {escape(_short(sample['answer']))}")

    def _open(self, label: str, total: int) -> Progress:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.progress.start()
        self.task = self.progress.add_task(label, total=total)
        return self.progress

    def _close(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = self.task = None


def show_report(report: Report, folder: Path, program: str) -> None:
    """The six lines, the sentence, the verdict, and what to do next."""
    console.print()
    for check in report.checks:
        mark = "[green]✓[/green]" if check.passed else "[red]✗[/red]"
        console.print(f"{mark} {check.name:<10} {escape(check.figure)}")
    colour = {"improved": "green", "not_improved": "red"}.get(report.verdict, "yellow")
    console.print()
    console.print(escape(report.headline))
    console.print(f"verdict: [{colour} bold]{report.verdict}[/{colour} bold]")
    console.print(f"\nreport: {folder / 'report.html'}", markup=False)
    if (folder / "best").is_dir():
        console.print(f"chat:   {program} chat {folder}", markup=False)


def _tells(plan: Plan, name: str) -> bool:
    """Whether a line about this number tells anything: most runs keep no trunk."""
    return not (name.startswith("trunk") and plan["trunk"] == "no")


def _nice(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return f"{value / 2**30:.2f} GiB"
    if name.endswith("_seconds"):
        return f"{value // 60} min {value % 60:02d} s" if value >= 60 else f"{value} s"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _short(text: str, width: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def show_rows(rows: list[Shown]) -> None:
    """Rendered rows: trained tokens between ⟦ and ⟧, control tokens between ❰ and ❱."""
    for row in rows:
        console.print(f"\n[bold]{escape(row.source)}:{row.line}[/bold] {escape(row.id)}")
        console.print(marked(row))
        if row.rejected:
            console.print(Text.assemble(("rejected, not trained: ", "red"), plain(row.rejected)))
        trained = sum(piece.tokens for piece in row.pieces if piece.weight > 0)
        every = sum(piece.tokens for piece in row.pieces)
        console.print(
            f"[dim]{trained} of {every} tokens trained, between ⟦ and ⟧; "
            "control tokens between ❰ and ❱[/dim]"
        )


def marked(row: Shown) -> Text:
    """The row's text with its marks, which stand there without colours too."""
    line = Text()
    inside = False
    for piece in row.pieces:
        if (piece.weight > 0) != inside:
            inside = not inside
            line.append("⟦" if inside else "⟧", "green")
        text = plain(piece.text)
        style = "magenta" if piece.control else "green" if inside else ""
        line.append(f"❰{text}❱" if piece.control else text, style)
    line.append("⟧" if inside else "", "green")
    return line


def plain(text: str) -> str:
    """`text` for a terminal: nothing in it commands the terminal or passes for a mark of ours."""
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], _MARKS.sub(r"\\\g<0>", text))


def show_runs(found: list[Listed], folder: Path) -> None:
    if not found:
        console.print(f"no runs in {folder}", markup=False)
        return
    table = Table(box=None, pad_edge=False)
    for name in ("run", "state", "verdict", "step", "checkpoints", "size"):
        table.add_column(name, justify="right" if name in ("step", "size") else "left")
    for run in found:
        kept = ", ".join(f"{n}{' pinned' if n in run.pinned else ''}" for n in run.checkpoints)
        size = f"{run.bytes / 1e6:,.1f} MB"
        step = f"{run.step}/{run.steps}"
        table.add_row(escape(run.path), run.state, run.verdict or "-", step, kept or "-", size)
    console.print(table)


def show_findings(findings: list[Finding]) -> None:
    for finding in findings:
        mark = "[green]✓[/green]" if finding.fine else "[red]✗[/red]"
        advice = "" if finding.fine else f" — {finding.advice}"
        console.print(f"{mark} {finding.name:<14} {escape(finding.found + advice)}")


def show_export(done: Exported) -> None:
    """What was written, and the gate's figures."""
    for name in done.files:
        console.print(f"  {name}", markup=False)
    console.print(f"[green]✓[/green] export     {escape(done.figure)}")
    for note in done.notes:
        console.print(note, markup=False)
    for measure in done.measures[:5]:
        low, high = measure.ci95
        console.print(
            f"{measure.name}: {measure.before:.4g} to {measure.after:.4g} "
            f"({measure.difference:+.4g} [{low:+.4g}, {high:+.4g}], {measure.verdict})",
            markup=False,
        )
    console.print(f"{done.path}: {done.num_bytes / 1e6:.1f} MB", markup=False)
