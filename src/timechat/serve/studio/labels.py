"""What people say of answers: corrections and picks from the chat, and the queue's page.

Everything lands in the queue of the model's run, which `timechat annotate` works on too.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from timechat.conversation import Message
from timechat.evals.scoring.scorers import contains
from timechat.ledger.annotation import Queue
from timechat.ledger.judging import TICKS, Answer, Item, Judgement
from timechat.serve.errors import ApiError
from timechat.serve.gate import gate_of
from timechat.serve.studio.desk import Part, desk_of
from timechat.stages.annotating.annotate import measure_agreement

router = APIRouter(tags=["studio"])

Text = Annotated[str, Field(max_length=100_000)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
# In what the better answer is better; null where nobody was asked.
Ticks = Annotated[list[Name], Field(max_length=len(TICKS))] | None
VERDICTS = {"good": "right", "bad": "wrong", "correct": "corrected"}
# On the screen the answers stand in an order of their own; the judgement is of the item's.
OTHER_SIDE = {"first": "second", "second": "first"}


class Words(Part):
    role: Literal["system", "user", "assistant"]
    content: Text


class Said(Part):
    """A person's word on an answer in the chat."""

    conversation: Name
    model: Name
    prompt: Annotated[list[Words], Field(min_length=1, max_length=500)]
    author: Name = "chat"

    @property
    def messages(self) -> tuple[Message, ...]:
        return tuple(Message(one.role, one.content) for one in self.prompt)


class Correction(Said):
    answer: Text
    verdict: Literal["good", "bad", "correct"]
    value: Annotated[str, Field(min_length=1, max_length=100_000)] | None = None
    fact: Annotated[str, Field(max_length=500)] = ""
    others: Annotated[list[Text], Field(default_factory=list, max_length=20)]


class Pick(Said):
    answers: Annotated[list[Text], Field(min_length=2, max_length=2)]
    origins: Annotated[list[Name], Field(min_length=2, max_length=2)]
    picked: Annotated[int, Field(ge=0, le=1)]
    ticks: Ticks = None


class Person(Part):
    model: Name
    annotator: Name


class Judged(Person):
    item: int
    verdict: Name
    value: Text | None = None
    seconds: Annotated[float, Field(ge=0, le=86_400)] | None = None
    ticks: Ticks = None


@router.post("/studio/corrections", status_code=201)
async def correct(body: Correction, request: Request) -> dict[str, int]:
    """Keep what was said of an answer; other ways to ask become items of their own beside it.

    `fact` is what must be in a right answer, in a few words; it stands in the judgement's note.
    """
    if body.fact and not contains(body.value or "", [body.fact]):
        raise ApiError(400, "the better answer does not hold the fact", param="fact")
    said = Judgement(0, body.author, VERDICTS[body.verdict], body.value, note=body.fact)
    answer = Answer(body.answer, body.model)
    item = Item(
        "judge", body.messages, (answer,), group=body.conversation, source="chat", said=(said,)
    )
    items = [item]
    for words in body.others:
        prompt = (*item.prompt[:-1], Message("user", words))
        items.append(replace(item, prompt=prompt, answers=()))
    return {"added": await asyncio.to_thread((await _queue(body.model, request)).add, items)}


@router.post("/studio/picks", status_code=201)
async def pick(body: Pick, request: Request) -> dict[str, int]:
    """Keep which of two answers was the better one, and in what."""
    answers = tuple(map(Answer, body.answers, body.origins))
    verdict = ("first", "second")[body.picked]
    said = Judgement(0, body.author, verdict, ticks=_as_ticks(body.ticks))
    item = Item(
        "choose", body.messages, answers, group=body.conversation, source="chat", said=(said,)
    )
    return {"added": await asyncio.to_thread((await _queue(body.model, request)).add, [item])}


@router.post("/studio/queue/claim")
async def claim(body: Person, request: Request) -> dict[str, Any]:
    """The next thing to judge for this person, and how far the queue is."""
    return await asyncio.to_thread(_next, await _queue(body.model, request), body.annotator)


@router.post("/studio/queue/answer")
async def answer(body: Judged, request: Request) -> dict[str, Any]:
    """Keep a judgement, and give the next thing to judge."""
    return await asyncio.to_thread(_judge, await _queue(body.model, request), body)


@router.post("/studio/queue/undo")
async def undo(body: Person, request: Request) -> dict[str, Any]:
    """Take this person's latest judgement back and show its item again."""
    queue = await _queue(body.model, request)
    item = await asyncio.to_thread(queue.undo, body.annotator)
    return await asyncio.to_thread(_shown, queue, item, body.annotator)


@router.get("/studio/queue/agreement")
async def agreement(model: str, request: Request) -> dict[str, Any]:
    found = await asyncio.to_thread(measure_agreement, await _queue(model, request))
    return {"agreement": [asdict(one) for one in found]}


async def _queue(model: str, request: Request) -> Queue:
    served = await gate_of(request).find(model)
    return await asyncio.to_thread(desk_of(request).queue_of, served)


def _next(queue: Queue, annotator: str) -> dict[str, Any]:
    return _shown(queue, queue.claim(annotator), annotator)


def _judge(queue: Queue, body: Judged) -> dict[str, Any]:
    found = next((one for one in queue.items() if one.id == body.item), None)
    verdict = body.verdict
    if found is not None and found.shown_order(body.annotator)[:1] == (1,):
        verdict = OTHER_SIDE.get(verdict, verdict)
    queue.answer(
        Judgement(
            body.item,
            body.annotator,
            verdict,
            body.value,
            seconds=body.seconds,
            ticks=_as_ticks(body.ticks),
        )
    )
    return _next(queue, body.annotator)


def _as_ticks(ticks: list[str] | None) -> tuple[str, ...] | None:
    return None if ticks is None else tuple(ticks)


def _shown(queue: Queue, item: Item | None, annotator: str) -> dict[str, Any]:
    """An item as its judge may see it: in the judge's own order, and nobody's names."""
    row: dict[str, Any] = {"progress": asdict(queue.progress(annotator)), "labels": queue.labels}
    row |= {"ticks": TICKS}
    if item is None:
        return row | {"item": None}
    texts = [item.answers[i].text for i in item.shown_order(annotator)]
    prompt = [{"role": m.role, "content": m.content} for m in item.prompt]
    suggestions = [asdict(one) for one in item.suggestions]
    shown = {"id": item.id, "task": item.task, "prompt": prompt, "answers": texts}
    return row | {"item": shown | {"suggestions": suggestions}}
