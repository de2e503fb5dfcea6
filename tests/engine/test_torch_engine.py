"""The engine: a batch of N equals N of one, streams end by their reason, characters stay whole."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import pytest
import torch
from conftest import ROWS, build_model

from timechat.engine.greedy import MOST_ROWS, MOST_TOKENS, in_batches, token_bytes
from timechat.engine.protocol import Delta, Ending, Sampling
from timechat.engine.torch import TorchEngine, window_of
from timechat.model.render import Renderer

GREEDY = Sampling(max_new_tokens=12)


def stream(engine: TorchEngine, prompt: Sequence[int], sampling: Sampling, stop=frozenset()):
    return list(engine.stream(prompt, sampling, stop))


def test_greedy_equals_transformers_generate(renderer: Renderer) -> None:
    model = build_model()
    prompt = renderer.prompt(ROWS[0].question)
    expected = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[0, len(prompt) :].tolist()
    found = [d.token for d in stream(TorchEngine(model), prompt, GREEDY) if d.token is not None]
    assert found == expected


def test_a_batch_of_n_equals_n_of_one(renderer: Renderer) -> None:
    engine = TorchEngine(build_model())
    prompts = [renderer.prompt(row.question) for row in ROWS]
    together = engine.answers(prompts, 12, frozenset())
    for prompt, answer in zip(prompts, together, strict=True):
        alone = [d.token for d in stream(engine, prompt, GREEDY) if d.token is not None]
        assert answer == alone


def test_rows_that_end_leave_the_others_answers_alone(renderer: Renderer) -> None:
    engine = TorchEngine(build_model())
    prompts = [renderer.prompt(row.question) for row in ROWS]
    free = engine.answers(prompts, 12, frozenset())

    def ended(stop: frozenset[int]) -> list[list[int]]:
        ends = [next((i + 1 for i, t in enumerate(a) if t in stop), len(a)) for a in free]
        return [answer[:end] for answer, end in zip(free, ends, strict=True)]

    stops = [frozenset(pair) for pair in combinations({t for a in free for t in a}, 2)]
    stop = max(stops, key=lambda pair: len(set(map(len, ended(pair)))))
    assert len(set(map(len, ended(stop)))) > 2, "the rows end one after another"
    assert engine.answers(prompts, 12, stop) == ended(stop)


def test_a_batch_holds_so_many_tokens_and_each_prompt_once() -> None:
    prompts = [[1] * length for length in (9000, 10, 4000, 4000, 200, *[20] * 100)]
    batches = in_batches(build_model(), prompts)
    assert sorted(place for batch in batches for place in batch) == list(range(len(prompts)))
    for batch in batches:
        longest = max(len(prompts[place]) for place in batch)
        assert len(batch) <= MOST_ROWS
        assert len(batch) * longest <= MOST_TOKENS or len(batch) == 1


def test_a_batch_of_a_large_models_answers_holds_fewer_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, prompts = build_model(), [[1] * 10] * 20
    assert len(in_batches(model, prompts)) == 1
    monkeypatch.setattr("timechat.engine.greedy.MOST_BYTES", 50 * token_bytes(model))
    assert [len(batch) for batch in in_batches(model, prompts)] == [5] * 4


def test_the_head_is_not_copied_for_each_prompt(renderer: Renderer) -> None:
    model = build_model()
    prompts = [renderer.prompt(row.question) for row in ROWS]
    seen: list[bool] = []
    model.lm_head.register_forward_pre_hook(lambda _, given: seen.append(given[0].is_contiguous()))
    TorchEngine(model).answers(prompts, 3, frozenset())
    assert seen == [True] * 3


def test_a_stop_token_ends_the_answer(renderer: Renderer) -> None:
    engine = TorchEngine(build_model())
    prompt = renderer.prompt(ROWS[0].question)
    first = stream(engine, prompt, GREEDY)[0].token
    assert first is not None
    assert stream(engine, prompt, GREEDY, frozenset({first})) == [Delta(None, Ending.STOP)]
    assert engine.answers([prompt], 12, frozenset({first})) == [[first]]


def test_an_answer_that_reaches_its_limit_says_so(renderer: Renderer) -> None:
    found = stream(TorchEngine(build_model()), renderer.prompt(ROWS[0].question), GREEDY)
    assert len(found) == 13
    assert found[-1].ending is Ending.LENGTH


def test_sampling_is_a_function_of_its_seed(renderer: Renderer) -> None:
    engine = TorchEngine(build_model())
    prompt = renderer.prompt(ROWS[0].question)
    hot = [stream(engine, prompt, Sampling(2.0, 0.95, seed, 20)) for seed in (1, 1, 2)]
    assert hot[0] == hot[1] != hot[2]


def test_the_window_is_the_models() -> None:
    assert window_of(build_model()) == 512
