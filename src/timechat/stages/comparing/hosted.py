"""A hosted model as one side of a proof: asked question by question, its cost and faults counted.

How one question is put to an endpoint, retried and recorded is `endpoint`'s.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from timechat.endpoint import Endpoint, Reply, names_another
from timechat.errors import RecipeError
from timechat.evals.questions.suite import Task
from timechat.stages.watch import Watcher

PER_TOKENS = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """What the user says that a hosted model costs, for a million tokens in and out."""

    prompt: float
    completion: float
    currency: str
    given: str

    def of(self, replies: Sequence[Reply]) -> float:
        tokens_in = sum(r.prompt_tokens for r in replies)
        tokens_out = sum(r.completion_tokens for r in replies)
        return (tokens_in * self.prompt + tokens_out * self.completion) / PER_TOKENS


def parse_prices(texts: Sequence[str]) -> dict[str, Price]:
    """`MODEL=IN/OUT/CURRENCY`, a million tokens each. Raises RecipeError for anything else."""
    prices: dict[str, Price] = {}
    today = datetime.now(UTC).date().isoformat()
    for text in texts:
        model, equals, rest = text.rpartition("=")
        parts = rest.split("/")
        try:
            tokens_in, tokens_out = float(parts[0]), float(parts[1])
            currency = parts[2].strip()
        except (ValueError, IndexError):
            tokens_in, tokens_out, currency = math.nan, math.nan, ""
        right = equals and model and currency and len(parts) == 3
        if not right or not (0 <= tokens_in < math.inf and 0 <= tokens_out < math.inf):
            raise RecipeError(
                f"--price {text!r}: write MODEL=IN/OUT/CURRENCY, the price of a million tokens "
                "read and written, such as --price gpt-x=0.15/0.60/USD"
            )
        prices[model] = Price(tokens_in, tokens_out, currency, today)
    return prices


def ask_endpoint(
    endpoint: Endpoint,
    task: Task,
    max_new_tokens: int,
    watcher: Watcher,
    prices: Mapping[str, Price],
) -> tuple[list[Reply], dict[str, Any]]:
    """A hosted model's answers, with what it cost and what went wrong."""
    tick = watcher.track(f"{endpoint.model}: {len(task.questions)} questions", len(task.questions))
    replies: list[Reply] = []
    for question in task.questions:
        replies.append(endpoint.ask(question.question, max_new_tokens))
        tick(1)
    return replies, tell_cost(endpoint, replies, prices)


def tell_cost(
    endpoint: Endpoint, replies: Sequence[Reply], prices: Mapping[str, Price]
) -> dict[str, Any]:
    """Who was asked and who answered, when, for how many tokens and how much, and what failed."""
    faults: dict[str, int] = {}
    for reply in replies:
        if reply.fault:
            faults[reply.fault] = faults.get(reply.fault, 0) + 1
    told = sorted({reply.model for reply in replies if reply.model})
    dates = [r.date for r in replies if r.date]
    answered = [r for r in replies if not r.fault]
    cost: dict[str, Any] = {
        "model_asked": endpoint.model,
        "models_told": told,
        "first_asked": min(dates, default=""),
        "last_asked": max(dates, default=""),
        "prompt_tokens": sum(r.prompt_tokens for r in replies),
        "completion_tokens": sum(r.completion_tokens for r in replies),
        "uncounted": sum(r.prompt_tokens == 0 for r in answered),
        "cut_off": sum(r.ending == "length" for r in answered),
        "faults": faults,
        "unanswered": sum(faults.values()),
    }
    waits = [r.first_token_s for r in answered if r.first_token_s is not None]
    if waits:
        cost["first_token_ms"] = round(1000 * statistics.median(waits), 1)
    if price := prices.get(endpoint.model):
        cost["price"] = {**asdict(price), "per_tokens": PER_TOKENS}
        cost["money"] = round(price.of(answered), 6)
    if any(names_another(endpoint.model, name) for name in told):
        cost["warning"] = f"asked for {endpoint.model}, answered by {', '.join(told)}"
    return cost


def tell_findings(who: str, cost: Mapping[str, Any]) -> list[str]:
    """What a reader should know of it, in sentences."""
    found = [f"{who}: {n} questions not answered ({fault})" for fault, n in cost["faults"].items()]
    if "warning" in cost:
        found.append(f"{who}: {cost['warning']}")
    if cost["cut_off"]:
        found.append(f"{who}: {cost['cut_off']} answers were cut off at the longest length allowed")
    if "money" in cost:
        price = cost["price"]
        tokens = f"{cost['prompt_tokens']:,} tokens read and {cost['completion_tokens']:,} written"
        least = "at least " if cost["uncounted"] else ""
        found.append(
            f"{who} cost {least}{cost['money']:.4g} {price['currency']} ({tokens}, at the price "
            f"given on {price['given']}; asked {cost['first_asked'][:10]})"
        )
    return found
