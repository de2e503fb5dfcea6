"""Messages in, text out: whole characters, stop strings, windows, and being stopped."""

from __future__ import annotations

import asyncio
import gc
import threading
from contextlib import aclosing

import pytest
from conftest import build_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from timechat.conversation import Message
from timechat.engine.admission import Admission, BusyError
from timechat.engine.blocking import BlockingResponder
from timechat.engine.fake import FakeEngine
from timechat.engine.local import LocalResponder
from timechat.engine.protocol import Ending, EngineError, Sampling
from timechat.engine.responder import Ask, ContextTooLongError, Piece
from timechat.engine.scribe import ThreadScribe
from timechat.engine.text import TextStream
from timechat.model.render import Renderer

HELLO = [Message("user", "hi")]
TOKENIZER = build_tokenizer()
CORE = TOKENIZER.backend_tokenizer


def ids_of(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def build(engine: FakeEngine) -> LocalResponder:
    return LocalResponder(engine, ThreadScribe(Renderer(build_tokenizer())), CORE)


def test_pieces_are_whole_characters() -> None:
    text = "Ö ist ünd 🙂 ok"
    with BlockingResponder(build(FakeEngine(lambda _: ids_of(text)))) as responder:
        pieces = list(responder.reply(HELLO, Sampling()))
        assert "".join(pieces) == text
        assert all("\ufffd" not in piece for piece in pieces)
        assert responder.ending is Ending.STOP


def test_a_stopped_reply_is_cancelled_and_its_compute_freed() -> None:
    engine = FakeEngine(lambda _: [70] * 1000, interval_s=0.001)
    with BlockingResponder(build(engine)) as responder:
        reply = responder.reply(HELLO, Sampling(max_new_tokens=1000))
        next(reply)
        reply.close()
        assert responder.ending is Ending.CANCELLED
    assert len(engine.cancelled) == 1
    assert engine.running == 0


def test_a_responder_that_was_forgotten_is_stopped_with_its_thread() -> None:
    engine = FakeEngine(lambda _: [70])
    before = set(threading.enumerate())
    responder = BlockingResponder(build(engine))
    list(responder.reply(HELLO, Sampling(max_new_tokens=1)))
    assert engine.ready
    del responder
    gc.collect()
    assert not engine.ready
    assert set(threading.enumerate()) <= before | {
        thread for thread in threading.enumerate() if thread.name.startswith("asyncio_")
    }


def test_closing_twice_is_closing_once() -> None:
    responder = BlockingResponder(build(FakeEngine(lambda _: [70])))
    responder.close()
    responder.close()


def test_an_answer_that_broke_off_is_an_error() -> None:
    with BlockingResponder(build(FakeEngine(lambda _: [70] * 9, fails_after=2))) as responder:
        with pytest.raises(EngineError, match="as scripted"):
            list(responder.reply(HELLO, Sampling()))
        assert responder.ending is Ending.FAILED


def test_a_conversation_beyond_the_window_is_refused() -> None:
    with (
        BlockingResponder(build(FakeEngine(window=16))) as responder,
        pytest.raises(ContextTooLongError, match="16 tokens"),
    ):
        next(responder.reply([Message("user", "x" * 40)], Sampling()))


@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=3), max_size=3))
def test_streamed_text_is_the_decoded_text_up_to_the_first_stop_string(
    text: str, stops: list[str]
) -> None:
    stream = TextStream(CORE, stops)
    shown = ""
    for token in ids_of(text):
        shown += stream.feed(token)
        if stream.stopped:
            break
    shown += stream.end()
    whole = CORE.decode(ids_of(text), skip_special_tokens=True)
    # The first stop string to be complete wins; before it nothing of any may be shown.
    ends = [end for end in range(len(whole) + 1) if any(whole[:end].endswith(s) for s in stops)]
    if not ends:
        assert shown == whole
        return
    said = whole[: ends[0]]
    assert shown == said[: min(said.find(s) for s in stops if s in said)]


def test_a_cut_off_character_comes_out_at_the_end_and_not_before() -> None:
    stream = TextStream(CORE)
    assert [stream.feed(token) for token in ids_of("🙂")[:3]] == ["", "", ""]
    assert "\ufffd" in stream.end()


async def replies(responder: LocalResponder, ask: Ask) -> list[Piece]:
    async with aclosing(responder.reply(ask)) as pieces:
        return [piece async for piece in pieces]


def test_special_tokens_of_the_model_are_not_shown() -> None:
    text = TextStream(CORE)
    end = TOKENIZER.convert_tokens_to_ids("<|im_start|>")
    assert [text.feed(token) for token in [*ids_of("a"), end, *ids_of("b")]] == ["a", "", "b"]


def test_places_go_by_budget_and_a_full_queue_refuses_at_once() -> None:
    async def scene() -> None:
        places = Admission(max_waiting=1, budget=100)
        order: list[str] = []

        async def hold(name: str, tokens: int, leave: asyncio.Event) -> None:
            async with places.place(tokens):
                order.append(name)
                await leave.wait()

        leave = asyncio.Event()
        first = asyncio.create_task(hold("first", 60, leave))
        await asyncio.sleep(0)
        second = asyncio.create_task(hold("second", 60, leave))
        await asyncio.sleep(0)
        assert (order, places.running, places.waiting) == (["first"], 1, 1)
        with pytest.raises(BusyError) as refused:
            async with places.place(1):
                pass
        assert refused.value.retry_after_s >= 1
        leave.set()
        await asyncio.gather(first, second)
        assert order == ["first", "second"]
        assert (places.held, places.running, places.waiting) == (0, 0, 0)

    asyncio.run(scene())


def test_a_waiter_that_leaves_gives_its_turn_on() -> None:
    async def scene() -> None:
        places = Admission(max_waiting=5, budget=10)
        async with places.place(10):
            waiting = [asyncio.create_task(_pass(places, 10)) for _ in range(2)]
            await asyncio.sleep(0)
            waiting[0].cancel()
            await asyncio.sleep(0)
        await waiting[1]
        assert (places.held, places.running, places.waiting) == (0, 0, 0)

    asyncio.run(scene())


async def _pass(places: Admission, tokens: int) -> None:
    async with places.place(tokens):
        pass
