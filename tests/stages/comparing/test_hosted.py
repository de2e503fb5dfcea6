"""What a hosted model costs, in the user's own prices, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from conftest import conversation

from timechat.endpoint import Endpoint, Limits, Reply
from timechat.errors import RecipeError
from timechat.evals.questions.suite import Task
from timechat.stages.comparing.hosted import ask_endpoint, parse_prices, tell_cost, tell_findings
from timechat.stages.watch import Watcher

ADDRESS = "http://there.test/v1#gpt-x"
TASK = Task(tuple(conversation(f"q{i}", f"Door {i}?", "Green") for i in range(4)), ((),) * 4, ())


def answer(_: httpx.Request) -> httpx.Response:
    choice = {"message": {"content": "Green"}, "finish_reason": "length"}
    usage = {"prompt_tokens": 1_000, "completion_tokens": 50}
    return httpx.Response(200, json={"model": "gpt-x", "choices": [choice], "usage": usage})


def open_endpoint(record: Path | None = None, **options: bool) -> Endpoint:
    transport = httpx.MockTransport(answer)
    return Endpoint(ADDRESS, record, Limits(1, 1.0, 0.0), transport=transport, **options)


def test_the_cost_is_tokens_times_the_price_given_with_its_date() -> None:
    prices = parse_prices(["gpt-x=0.15/0.60/USD"])
    replies, cost = ask_endpoint(open_endpoint(), TASK, 16, Watcher(), prices)
    assert len(replies) == 4
    assert cost["money"] == pytest.approx((4_000 * 0.15 + 200 * 0.60) / 1e6)
    assert cost["price"]["currency"] == "USD"
    assert len(cost["price"]["given"]) == 10
    assert cost["first_asked"] <= cost["last_asked"]
    told = " ".join(tell_findings(ADDRESS, cost))
    assert "cost 0.00072 USD (4,000 tokens read and 200 written" in told
    assert "4 answers were cut off" in told


def test_replayed_answers_cost_what_they_cost_when_they_were_asked(tmp_path: Path) -> None:
    prices = parse_prices(["gpt-x=1/2/EUR"])
    record = tmp_path / "answers.jsonl"
    _, asked = ask_endpoint(open_endpoint(record), TASK, 16, Watcher(), prices)
    _, replayed = ask_endpoint(open_endpoint(record, offline=True), TASK, 16, Watcher(), prices)
    assert replayed == asked


def test_the_wait_for_the_first_token_is_the_median_over_the_answers() -> None:
    waits = (0.1, None, 0.3, 0.2, 9.0)
    replies = [Reply("Green", first_token_s=wait) for wait in waits]
    replies.append(Reply(fault="down", first_token_s=0.0))
    assert tell_cost(open_endpoint(), replies, {})["first_token_ms"] == 250.0
    assert "first_token_ms" not in tell_cost(open_endpoint(), [Reply("Green")], {})


def test_without_a_price_no_cost_is_claimed() -> None:
    _, cost = ask_endpoint(open_endpoint(), TASK, 16, Watcher(), {})
    assert "money" not in cost
    assert cost["prompt_tokens"] == 4_000


@pytest.mark.parametrize(
    "text", ["0.15/0.6/USD", "gpt-x=0.15/0.6", "gpt-x=a/b/USD", "gpt-x=-1/0/USD", "gpt-x=1/inf/USD"]
)
def test_a_price_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="MODEL=IN/OUT/CURRENCY"):
        parse_prices([text])
