"""A judge's view beside the measures, with its controls; never the headline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from timechat.conversation import Message
from timechat.endpoint import Endpoint, Reply
from timechat.evals.questions.suite import Task
from timechat.evals.scoring.judge import Judgement, Pair, judge_pairs
from timechat.stages.comparing.hosted import Price, tell_cost
from timechat.stages.watch import Watcher

# Tokens of a judge's reply: one word, and room for a few around it.
REPLY_TOKENS = 16


def judge_answers(
    endpoint: Endpoint,
    task: Task,
    before: Sequence[str],
    after: Sequence[str],
    watcher: Watcher,
    prices: Mapping[str, Price],
) -> tuple[dict[str, Any], list[str]]:
    """What the judge found, for the report's details, and sentences for its findings."""
    pairs = [
        Pair(q.id, q.cluster, q.question[-1].content, old, new, q.reference)
        for q, old, new in zip(task.questions, before, after, strict=True)
    ]
    replies: list[Reply] = []

    def ask(messages: Sequence[Message]) -> str | None:
        replies.append(endpoint.ask(messages, REPLY_TOKENS))
        return None if replies[-1].fault else replies[-1].text

    tick = watcher.track(f"judge {endpoint.model}: {len(pairs)} pairs", len(pairs))
    found = judge_pairs(pairs, ask, tick)
    cost = tell_cost(endpoint, replies, prices)
    details = {**asdict(found), "believable": found.believable, "cost": cost}
    return details, _tell(endpoint.model, found, cost)


def _tell(model: str, found: Judgement, cost: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    if found.measure is not None:
        low, high = found.length_ci95
        lines.append(
            f"judge {model}: the new answers win {found.measure.after:.0%}, "
            f"{found.length_controlled:.0%} at equal length "
            f"[{100 * low:.0f}, {100 * high:.0f}]; "
            f"{found.consistency:.0%} judged alike in both orders"
        )
    lines += [f"judge {model} is not to be believed: it {fault}" for fault in found.faults]
    if "warning" in cost:
        lines.append(f"judge: {cost['warning']}")
    if "money" in cost:
        lines.append(f"judge {model} cost {cost['money']:.4g} {cost['price']['currency']}")
    return lines
