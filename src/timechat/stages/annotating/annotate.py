"""`annotate`: a folder of rows, or a run, becomes a queue of things for people to judge.

The terminal and the page both work on the `Queue` that `open_folder` returns. What becomes of the
judgements is `collect`'s; other tools' files are `exchange`'s.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timechat.conversation import Conversation, Message
from timechat.data.files.locate import PREPARED_CARD
from timechat.data.sources import open_sources
from timechat.engine.protocol import Ending, Sampling
from timechat.errors import DataError, LedgerError
from timechat.evals.statistics.agreement import Agreement, agreements
from timechat.ledger.annotation import Queue, open_queue
from timechat.ledger.database import LEDGER_FILE, open_ledger
from timechat.ledger.judging import Answer, Item, Judgement, Suggestion, Task
from timechat.recipe import Data
from timechat.stages.annotating.exchange.read import read_items
from timechat.stages.preparing.output import SPLITS
from timechat.stages.preparing.prepare import load_prepared
from timechat.stages.serving.chat import open_responder
from timechat.stages.watch import Watcher
from timechat.store.files import read_lines

# Answers that are few, short and used again and again are labels: a closed set to choose from.
MAX_LABELS, MAX_LABEL_LENGTH, USES_OF_A_LABEL = 200, 60, 3
ROWS_TO_SEE_LABELS = 20


@dataclass(frozen=True, slots=True)
class Opened:
    """A queue, and how many items this opening has put in."""

    queue: Queue
    added: int


def open_folder(
    folder: Path,
    *,
    ledger: str | None = None,
    add: Sequence[Path] = (),
    columns: Mapping[str, str] | None = None,
    task: Task | None = None,
    labels: Sequence[str] = (),
    annotators: int | None = None,
    watcher: Watcher | None = None,
) -> Opened:
    """The queue of `folder`: filled at its first opening, and with the files `add` at any.

    A prepared folder gives its rows, a run (or what `compare` left) its answers before and after,
    any other folder its data files. `ledger` is a database URL instead of the folder's own file.
    Raises DataError and LedgerError.
    """
    watcher = watcher or Watcher()
    is_new = ledger is None and not (folder / LEDGER_FILE).is_file()
    if not folder.is_dir() and not add:
        raise DataError(
            f"no folder {folder}: name a prepared folder, a run or a folder of rows, or make one "
            "with --add FILE"
        )
    found: list[Item] = []
    for path in add:
        found += list(_from_file(path, dict(columns or {}), task))
    if add and not found:
        raise DataError(f"no item to judge in {', '.join(map(str, add))}")
    if is_new and not add:
        found = list(_from_folder(folder, dict(columns or {}), task))
        if not found:
            raise DataError(f"{folder} holds nothing to judge: give rows with --add FILE")
    folder.mkdir(parents=True, exist_ok=True)
    opened = open_ledger(ledger or folder / LEDGER_FILE)
    name = folder.resolve().name if ledger is not None else "own"
    queue = open_queue(opened, name, annotators, labels or None)
    if ledger is not None and not found and not queue.items():
        found = list(_from_folder(folder, dict(columns or {}), task))
    if not labels and not queue.labels and (guess := guess_labels(found)):
        watcher.say(f"{len(guess)} labels seen: {', '.join(guess[:8])}{' …' * (len(guess) > 8)}")
        queue = open_queue(opened, name, labels=guess)
    return Opened(queue, queue.add(found))


def reopen(folder: Path, ledger: str | None = None) -> Queue:
    """The queue of a folder that was opened before. Raises LedgerError when it was not."""
    if ledger is None and not (folder / LEDGER_FILE).is_file():
        raise LedgerError(
            f"{folder} holds no annotations (no {LEDGER_FILE}): begin with "
            f"`timechat annotate {folder}`"
        )
    name = folder.resolve().name if ledger is not None else "own"
    return open_queue(open_ledger(ledger or folder / LEDGER_FILE), name)


def guess_labels(items: Sequence[Item]) -> list[str]:
    """The closed set of answers when the items look like labelled texts, else an empty list."""
    judged = [item for item in items if item.task == "judge"]
    texts = [answer.text for item in judged for answer in item.answers]
    texts += [said.value for item in judged for said in item.said if said.value is not None]
    distinct = sorted(set(texts))
    if len(texts) < ROWS_TO_SEE_LABELS or not 2 <= len(distinct) <= MAX_LABELS:
        return []
    are_short = all(len(t) <= MAX_LABEL_LENGTH and "\n" not in t for t in distinct)
    return distinct if are_short and len(texts) >= USES_OF_A_LABEL * len(distinct) else []


def suggest(queue: Queue, model: str, watcher: Watcher | None = None) -> int:
    """Let a model answer every item to judge that nobody finished; returns how many it answered.

    With a closed set of labels, an answer that is none of them is not suggested.
    """
    watcher = watcher or Watcher()
    judged = {j.item for j in queue.judgements()}
    waiting = [
        item
        for item in queue.items()
        if item.task == "judge"
        and item.id not in judged
        and all(s.model != model for s in item.suggestions)
    ]
    if not waiting:
        return 0
    responder = open_responder(model, watcher.say)
    tick = watcher.track(f"{model} suggests {len(waiting)} answers", len(waiting))
    count = 0
    for item in waiting:
        text = "".join(responder.reply(item.prompt, Sampling(max_new_tokens=256))).strip()
        value = _as_label(text, queue.labels) if queue.labels else text
        if value and responder.ending is Ending.STOP:
            queue.suggest(item.id, Suggestion(model, value))
            count += 1
        tick(1)
    return count


def measure_agreement(queue: Queue) -> list[Agreement]:
    """Every coefficient that the queue's judgements allow; skipped items count as not judged."""
    by_item = {item.id: item for item in queue.items()}
    ratings: dict[Hashable, dict[str, str]] = {}
    for judgement in queue.judgements():
        if judgement.verdict != "skip":
            item = by_item[judgement.item]
            category = categorise(item, judgement, queue.labels)
            ratings.setdefault(item.id, {})[judgement.annotator] = category
    return agreements(ratings, {item.id: item.cluster for item in by_item.values()})


def categorise(item: Item, judgement: Judgement, labels: Sequence[str]) -> str:
    """What two people must share to agree: the label that stands, or the verdict."""
    if not labels or item.task == "choose" or judgement.verdict == "wrong":
        return judgement.verdict
    return item.answers[0].text if judgement.verdict == "right" else str(judgement.value)


def _from_folder(folder: Path, columns: dict[str, str], task: Task | None) -> Iterator[Item]:
    if (folder / "evals").is_dir():
        yield from _from_answers(folder, task or "choose")
        return
    if task == "choose":
        raise DataError(f"{folder} has one answer a row: to choose needs a run, or --add of pairs")
    if (folder / PREPARED_CARD).is_file():
        prepared = load_prepared(folder)
        for name in SPLITS:
            yield from _to_judge(getattr(prepared, name))
    else:
        yield from _from_rows([str(folder)], columns)


def _from_file(path: Path, columns: dict[str, str], task: Task | None) -> Iterator[Item]:
    tasks = read_items(path, columns)
    if tasks is not None:
        yield from (item for item in tasks if task in (None, item.task))
    elif task == "choose":
        raise DataError(f"{path} has one answer a row: to choose needs two")
    else:
        yield from _from_rows([str(path)], columns)


def _from_rows(names: Sequence[str], columns: dict[str, str]) -> Iterator[Item]:
    for source in open_sources(names, Data(columns=columns)):
        for row in source.rows():
            if isinstance(row.found, Conversation):
                yield from _to_judge([row.found])
            elif row.found.reason != "blank_line":
                raise DataError(
                    f"{source.name} line {row.line}: {row.found.reason} ({row.found.detail}); mend "
                    "or remove this row, or clean the file with `timechat prepare`"
                )


def _to_judge(rows: Iterable[Conversation]) -> Iterator[Item]:
    """A row's last answer is what is judged; a row that ends in a question waits for one."""
    for row in rows:
        has_answer = row.messages[-1].role == "assistant"
        prompt = row.question if has_answer else row.messages
        answers = (Answer(row.reference, "row"),) if has_answer else ()
        yield Item("judge", prompt, answers, row.id, row.group, row.source, row.line)


def _from_answers(folder: Path, task: Task) -> Iterator[Item]:
    """A run's held-out questions: which answer is better, or is the later one right."""
    sides = [list(_read_side(folder / "evals" / side)) for side in ("before", "after")]
    for before, after in zip(*sides, strict=True):
        prompt = tuple(Message(m["role"], m["content"]) for m in after["question"])
        texts = Answer(before["answer"], "before"), Answer(after["answer"], "after")
        if task == "judge":
            texts = texts[1:]
        elif texts[0].text == texts[1].text:
            continue  # nothing to choose
        if all(answer.text.strip() for answer in texts):
            yield Item(task, prompt, texts, after["id"], after["group"], f"{folder.name}/evals", 0)


def _read_side(folder: Path) -> Iterable[dict[str, Any]]:
    path = folder / "task.jsonl"
    if not path.is_file():
        raise DataError(f"{folder} has no task.jsonl: the run was not evaluated to the end")
    return read_lines(path)


def _as_label(text: str, labels: Sequence[str]) -> str | None:
    wanted = text.strip().strip(".").casefold()
    return next((label for label in labels if label.casefold() == wanted), None)
