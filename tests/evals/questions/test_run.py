"""Likelihoods and choices equal plain transformers, row by row."""

from __future__ import annotations

import pytest
import torch
from conftest import ROWS, build_model
from test_families import FAMILIES, build

from timechat.data.pack import Example, encode
from timechat.evals.questions.run import choose, likelihoods
from timechat.evals.questions.suite import Choice
from timechat.model.render import Renderer


def reference(model, ids: tuple[int, ...], start: int) -> torch.Tensor:
    """log p of each token from `start` on, by plain transformers."""
    with torch.no_grad():
        log_p = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return torch.stack([log_p[i - 1, ids[i]] for i in range(start, len(ids))])


def test_likelihoods_equal_plain_transformers(renderer: Renderer) -> None:
    model = build_model()
    examples = [encode(row, renderer) for row in ROWS]
    for example, found in zip(examples, likelihoods(model, examples), strict=True):
        values = reference(model, example.ids, 1)
        weights = torch.tensor(example.weights[1:])
        assert found.item == example.id
        assert found.num_tokens == int((weights > 0).sum())
        assert found.nats == pytest.approx(-float((values * weights).sum()), rel=1e-4)


def test_choices_equal_each_answer_alone() -> None:
    model = build_model()
    items = [
        Choice("a", "g", "facts", (5, 6, 7), ((8, 9), (10,), (11, 12, 13), (14, 15))),
        Choice("b", "g", "facts", tuple(range(20, 40)), ((1, 2, 3), (4,), (5,), (6, 7))),
    ]
    for item, found in zip(items, choose(model, items), strict=True):
        for answer, value in zip(item.answers, found.values, strict=True):
            alone = reference(model, item.prompt + answer, len(item.prompt))
            assert value == pytest.approx(float(alone.sum()), rel=1e-4)


def test_many_items_come_back_in_their_order() -> None:
    model = build_model()
    items = [
        Choice(str(i), "g", "t", (5,) * (i % 7 + 1), ((i % 50,), (51,), (52,), (53,)))
        for i in range(40)
    ]
    found = choose(model, items)
    assert [row.item for row in found] == [item.id for item in items]


def test_hits_count_what_the_model_would_say_itself() -> None:
    model = build_model()
    prompt = torch.tensor([[5, 6, 7]])
    said = model.generate(
        prompt, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0].tolist()
    weights = (0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0)
    assert likelihoods(model, [Example(tuple(said), weights, "x")])[0].hits == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_chooses_as_if_each_answer_stood_alone(family: str) -> None:
    model = build(family)
    opening = (5, 9, 2, 7)
    items = [
        Choice("a", "g", "facts", (*opening, 6, 7), ((8, 9), (10,), (11, 12, 13), (14, 15))),
        Choice("b", "g", "facts", (*opening, *range(20, 31)), ((1, 2, 3), (4,), (5,), (6, 7))),
        Choice("c", "g", "facts", (*opening, 40), ((1, 2, 3), (4, 5, 6, 7), (5, 9), (6,))),
    ]
    for item, found in zip(items, choose(model, items), strict=True):
        for answer, value in zip(item.answers, found.values, strict=True):
            alone = reference(model, item.prompt + answer, len(item.prompt))
            assert value == pytest.approx(float(alone.sum()), rel=1e-4, abs=1e-5)
