"""Replay without anybody's texts: what the base itself answers to general questions.

The rows are made once, before anything is trained, and kept in the run (`replay.jsonl`), so that a
run that goes on holds on to the same ones; another run on the same base finds them in the cache.
They are the model's own words, greedily; that the tuned model is held to the whole of the base's
distribution on them is `training`'s.
"""

from __future__ import annotations

from timechat.conversation import Conversation, Message
from timechat.errors import DataError
from timechat.evals.questions.suite import answer_conversations
from timechat.stages.evaluating.cache import AnswerCache
from timechat.stages.training.context import Context
from timechat.store.files import read_lines, write_lines

FILE = "replay.jsonl"
# Longer answers teach little more about how a model speaks, and take their time.
MAX_TOKENS = 64


def own_answers(context: Context) -> list[Conversation]:
    """The base's own answers, found in the run or asked of `context`'s model, as yet unchanged."""
    file = context.out / FILE
    if file.is_file():
        return [Conversation.from_dict(row) for row in read_lines(file)]
    asked = answer_conversations("replay")
    loaded = context.loaded
    prompts = [loaded.renderer.prompt(row.question) for row in asked]
    tick = context.watcher.track(f"the base answers {len(asked)} general questions", len(asked))
    found, _ = AnswerCache(loaded, context.watcher).answer(prompts, MAX_TOKENS, tick)
    rows = [
        row.with_messages((*row.question, Message("assistant", text)))
        for row, ids in zip(asked, found, strict=True)
        if (text := loaded.renderer.parse(ids).strip())
    ]
    if not rows:
        raise DataError(
            "train.replay_from = base: the base answers nothing to any general question; take "
            "the shipped texts"
        )
    write_lines(file, (row.to_dict() for row in rows))
    return rows
