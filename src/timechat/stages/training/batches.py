"""What each step of a run trains on: its rows, and the general rows it is held to."""

from __future__ import annotations

import random
from collections.abc import Callable

from timechat.data.augment import drop_words
from timechat.data.pack import Batch, Example, encode, order, pack
from timechat.evals.questions.suite import answer_examples, prose_examples
from timechat.model.ranks import ALONE, Ranks
from timechat.stages.training.context import Context
from timechat.stages.training.replay import own_answers


def plan_steps(context: Context) -> list[Callable[[], tuple[Batch, ...]]]:
    """What each step trains on, built when its turn comes."""
    plan, seed, ranks = context.plan, context.recipe.train.seed, context.ranks
    rows = order(len(context.train), plan["batch_rows"], plan["steps"], seed)
    replay = replay_batches(context)

    def example(row: int, number: int) -> Example:
        if not plan["word_dropout"]:
            return context.examples[row]
        # Drawn from the step's number, so that a resumed run leaves the same words out.
        chance = random.Random(f"{seed}-{number}-{row}")
        return encode(
            drop_words(context.train[row], plan["word_dropout"], chance), context.loaded.renderer
        )

    def step(number: int) -> tuple[Batch, ...]:
        held = replay[number % len(replay)] if replay else []
        own = [example(row, number) for row in rows[number]]
        return cut_step(own, held, plan["micro_rows"], ranks)

    return [lambda number=number: step(number) for number in range(len(rows))]


def cut_step(
    rows: list[Example], held: list[Example], micro_rows: int, ranks: Ranks = ALONE
) -> tuple[Batch, ...]:
    """One step's rows in micro-batches of `micro_rows` at most, the held rows spread over them.

    Of several ranks each takes its share, in as many micro-batches as the others.
    """
    most = -(-len(rows) // ranks.count)
    # No more than the rank with the fewest rows has.
    count = max(1, min(-(-most // micro_rows), len(rows) // ranks.count))
    if ranks.count > 1 and 0 < len(held) < count * ranks.count:
        # Each micro-batch needs some: all of them as often leaves their mean as it is.
        held = held * (count * ranks.count)
    own, others = ranks.take(rows), ranks.take(held)
    ends = [i * len(own) // count for i in range(count + 1)]
    return tuple(pack(own[ends[i] : ends[i + 1]], others[i::count]) for i in range(count))


def replay_batches(context: Context) -> list[list[Example]]:
    """General rows, shipped ones or the base's own, in batches of the plan's tokens in the mean."""
    size = context.plan["replay_tokens"]
    if not size:
        return []
    renderer = context.loaded.renderer
    if context.recipe.train.replay_from == "base":
        answers, prose = [encode(row, renderer) for row in own_answers(context)], []
    else:
        answers = answer_examples(renderer, "replay")
        prose = prose_examples(renderer, "replay")
    # Every batch holds both kinds: one paragraph to every so many answers.
    every = max(1, round(len(answers) / max(1, len(prose))))
    mixed: list[Example] = []
    for i, example in enumerate(answers):
        mixed.append(example)
        if i % every == every - 1 and prose:
            mixed.append(prose.pop())
    return cut_batches(mixed, size)


def cut_batches(rows: list[Example], size: int) -> list[list[Example]]:
    """`rows` in batches of `size` tokens in the mean, none of them empty.

    Rows stay whole, so a batch ends where it comes nearest to what all so far should hold: what one
    has too much another has less.
    """
    batches: list[list[Example]] = [[]]
    done = 0
    for example in rows:
        tokens = len(example.ids)
        if batches[-1] and done + tokens / 2 > size * len(batches):
            batches.append([])
        batches[-1].append(example)
        done += tokens
    return batches
