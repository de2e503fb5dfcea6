"""`collect`: what people judged becomes training rows, preference pairs, or another tool's file.

Where several people judged an item, more than half of them must say the same; what is left out is
written beside, each with its reason.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from timechat.errors import LedgerError, nearest
from timechat.ledger.annotation import Queue
from timechat.ledger.judging import TICKS, Item, Judgement
from timechat.stages.annotating.exchange.argilla import write_records
from timechat.stages.annotating.exchange.fields import write_prompt, write_time
from timechat.stages.annotating.exchange.labelstudio import write_config, write_tasks
from timechat.store.files import write_lines, write_text

Shape = Literal["rows", "pairs", "csv", "label-studio", "argilla"]
SHAPES: tuple[str, ...] = get_args(Shape)
SUFFIXES = {"csv": ".csv", "label-studio": ".json", "argilla": ".json"}
# A cell that begins like this is a formula to a spreadsheet (OWASP, CSV injection).
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
CSV_HEADER = (
    "item", "id", "group", "task", "prompt", "answer_1", "answer_2", "annotator", "verdict",
    "value", "note", "suggested_by", "seconds", "when", "ticks",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Collected:
    """What was written: how many rows, how many items were left out and why, and where."""

    shape: str
    items: int
    written: int
    left_out: dict[str, int]
    files: list[str]


@dataclass(frozen=True, slots=True)
class Settled:
    """What the people who judged an item agree on.

    `text` is the answer that stands, empty where the answer was wrong or none was chosen;
    `reason` says why there is none. `ticks` counts what those who chose it ticked.
    """

    verdict: str
    text: str = ""
    other: str = ""
    reason: str = ""
    ticks: dict[str, int] = field(default_factory=dict[str, int])


def collect(queue: Queue, shape: str, out: Path) -> Collected:
    """Write what was judged to `out` in one of SHAPES. Raises LedgerError when nothing was."""
    if shape not in SHAPES:
        raise LedgerError(f"no shape {shape!r}: {nearest(shape, SHAPES)}")
    wanted = SUFFIXES.get(shape, ".jsonl")
    if out.suffix.lower() != wanted:
        raise LedgerError(f"{out} would hold {shape}: name a file that ends in {wanted}")
    items = queue.items()
    if shape == "csv":
        write_text(out, spreadsheet(queue))
        return Collected(shape, len(items), len(queue.judgements()), {}, [str(out)])
    if shape in ("label-studio", "argilla"):
        content = write_tasks(queue) if shape == "label-studio" else write_records(queue)
        write_text(out, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
        files = [str(out)]
        if shape == "label-studio":
            config = out.with_suffix(".xml")
            write_text(config, write_config(queue))
            files.append(str(config))
        return Collected(shape, len(items), len(content), {}, files)
    return _collect_rows(queue, items, shape, out)


def settle(item: Item, said: Sequence[Judgement]) -> Settled:
    """The verdict and text that more than half of those who judged `item` share."""
    votes = Counter(
        (j.verdict, "" if j.value is None else j.value) for j in said if j.verdict != "skip"
    )
    if not votes:
        return Settled("", reason="skipped" if said else "not_judged")
    (verdict, value), count = votes.most_common(1)[0]
    if 2 * count <= votes.total():
        return Settled("", reason="disagreement")
    texts = [answer.text for answer in item.answers]
    if item.task == "choose":
        if verdict not in ("first", "second"):
            return Settled(verdict, reason=verdict)
        chosen = texts if verdict == "first" else texts[::-1]
        ticks = Counter(tick for j in said if j.verdict == verdict for tick in j.ticks or ())
        return Settled(
            verdict, chosen[0], chosen[1], ticks={t: ticks[t] for t in TICKS if ticks[t]}
        )
    if verdict == "wrong":
        return Settled(verdict, reason="wrong")
    return Settled(verdict, value or texts[0], texts[0] if value and texts else "")


def to_row(item: Item, settled: Settled) -> dict[str, Any]:
    """The training row of an item on whose answer people settled."""
    messages = [m.to_dict() for m in item.prompt]
    tags = [f"annotation:{settled.verdict}"]
    tags += [f"suggested:{s.model}" for s in item.suggestions if s.value == settled.text]
    row: dict[str, Any] = {"messages": [*messages, {"role": "assistant", "content": settled.text}]}
    row |= {"id": item.row_id} if item.row_id else {}
    row |= {"group": item.group} if item.group else {}
    return row | {"tags": tags}


def to_pair(item: Item, settled: Settled) -> dict[str, Any]:
    """A preference pair in OpenAI's shape: the answer that stands, and the one that does not.

    `ticks` stands beside them where there are any: in what the first is better, in how many eyes.
    """
    pair: dict[str, Any] = {
        "input": {"messages": [m.to_dict() for m in item.prompt]},
        "preferred_output": [{"role": "assistant", "content": settled.text}],
        "non_preferred_output": [{"role": "assistant", "content": settled.other}],
    }
    return pair | {"ticks": settled.ticks} if settled.ticks else pair


def spreadsheet(queue: Queue) -> str:
    """One line a judgement, as CSV; what a spreadsheet would run as a formula is made text."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(CSV_HEADER)
    by_id = {item.id: item for item in queue.items()}
    for said in queue.judgements():
        item = by_id[said.item]
        texts = [answer.text for answer in item.answers] + ["", ""]
        cells = [item.row_id, item.group, item.task, write_prompt(item.prompt), *texts[:2]]
        cells += [said.annotator, said.verdict, said.value or "", said.note, said.suggested or ""]
        seconds = "" if said.seconds is None else round(said.seconds, 1)
        ticks = ", ".join(said.ticks or ())
        when = write_time(said.created_ms)
        writer.writerow([item.id, *map(_as_text, cells), seconds, when, ticks])
    return out.getvalue()


def _collect_rows(queue: Queue, items: Sequence[Item], shape: str, out: Path) -> Collected:
    said = queue.by_item()
    rows: list[dict[str, Any]] = []
    left: list[dict[str, Any]] = []
    for item in items:
        settled = settle(item, said.get(item.id, []))
        reason = settled.reason
        if not reason and shape == "pairs" and not settled.other:
            reason = "not_corrected"
        if reason:
            left.append({"item": item.id, "id": item.row_id, "reason": reason})
        else:
            rows.append(to_pair(item, settled) if shape == "pairs" else to_row(item, settled))
    reasons = Counter(row["reason"] for row in left)
    if not rows:
        why = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        raise LedgerError(f"nothing to write as {shape} ({why or 'the queue is empty'})")
    beside = out.with_suffix(".left-out.jsonl")
    write_lines(out, rows)
    write_lines(beside, left)
    return Collected(shape, len(items), len(rows), dict(reasons), [str(out), str(beside)])


def _as_text(cell: str) -> str:
    return f"'{cell}" if cell.lstrip(" ").startswith(FORMULA_STARTS) else cell
