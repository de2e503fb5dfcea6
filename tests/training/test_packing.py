"""Packed rows equal rows alone: loss, gradients, and no token sees another conversation."""

from __future__ import annotations

import pytest
import torch
from conftest import ROWS, build_model
from torch.nn import functional as F

from timechat.conversation import Conversation, Message
from timechat.data.pack import Example, encode, order, pack, shared_prefix
from timechat.model.adapt import adapters, attach
from timechat.model.head import Head, divergence, head_of, hidden_states, log_probs, nats
from timechat.model.render import Renderer


def examples(renderer: Renderer, system: str = "") -> list[Example]:
    return [encode(row.with_system(system), renderer) for row in ROWS]


def alone(model, rows: list[Example]) -> torch.Tensor:
    """Summed nats of each row by itself through plain transformers: the independent reference."""
    total = torch.zeros(())
    for row in rows:
        ids = torch.tensor([row.ids])
        logits = model(input_ids=ids).logits[0, :-1].float()
        losses = F.cross_entropy(logits, ids[0, 1:], reduction="none")
        total = total + (losses * torch.tensor(row.weights[1:])).sum()
    return total


def packed_nats(model, rows: list[Example], share: bool) -> torch.Tensor:
    batch = pack(rows, share_prefix=share)
    hidden = hidden_states(model, batch.ids, batch.layout, batch.target_index)
    return nats(hidden, head_of(model), batch.targets, batch.weights)


@pytest.mark.parametrize("system", ["", "You answer for the help desk of Fenn and Daughters."])
@pytest.mark.parametrize("share", [False, True])
def test_packed_loss_and_gradients_equal_each_row_alone(
    renderer: Renderer, system: str, share: bool
) -> None:
    rows = examples(renderer, system)
    assert (shared_prefix(rows) > 20) == bool(system)
    model = build_model()
    attach(model, 4, 8.0, "all")
    for layer in adapters(model).values():
        torch.nn.init.normal_(layer.lora_b, std=0.1)
    parameters = [p for p in model.parameters() if p.requires_grad]
    expected = alone(model, rows)
    grads = torch.autograd.grad(expected, parameters)
    found = packed_nats(model, rows, share)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    for a, b in zip(torch.autograd.grad(found, parameters), grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_held_rows_beside_a_shared_prefix_equal_the_same_rows_alone(renderer: Renderer) -> None:
    rows = examples(renderer, "You answer for the help desk of Fenn and Daughters.")
    held = examples(renderer)
    model = build_model()
    batch = pack(rows, held)
    own = batch.num_target_tokens
    assert batch.num_held == sum(row.num_targets for row in held)
    assert own == sum(row.num_targets for row in rows)
    with torch.no_grad():
        hidden = hidden_states(model, batch.ids, batch.layout, batch.target_index)
        for part, expected in (
            (slice(own), alone(model, rows)),
            (slice(own, None), alone(model, held)),
        ):
            found = nats(hidden[part], head_of(model), batch.targets[part], batch.weights[part])
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_no_token_attends_to_another_conversation(renderer: Renderer) -> None:
    rows = examples(renderer)
    model = build_model()
    changed = Example((*rows[1].ids[:-3], 7, 7, 7), rows[1].weights, "b")

    def hidden(group: list[Example]) -> torch.Tensor:
        batch = pack(group, share_prefix=False)
        everywhere = torch.arange(batch.ids.shape[1])
        with torch.no_grad():
            return hidden_states(model, batch.ids, batch.layout, everywhere)

    before, after = hidden(rows), hidden([rows[0], changed, *rows[2:]])
    start, end = len(rows[0].ids), len(rows[0].ids) + len(rows[1].ids)
    assert torch.equal(before[:start], after[:start])
    assert torch.equal(before[end:], after[end:])
    assert not torch.equal(before[start:end], after[start:end])


def test_the_models_own_attention_is_put_back(renderer: Renderer) -> None:
    model = build_model()
    packed_nats(model, examples(renderer), share=True)
    assert model.config._attn_implementation == "sdpa"


def test_weights_scale_nats(renderer: Renderer) -> None:
    model = build_model()
    row = encode(ROWS[0], renderer)
    doubled = Example(row.ids, tuple(2 * w for w in row.weights), row.id)
    with torch.no_grad():
        one, two = packed_nats(model, [row], False), packed_nats(model, [doubled], False)
    torch.testing.assert_close(two, 2 * one)


def test_divergence_equals_torchs_kl_and_its_gradient() -> None:
    torch.manual_seed(0)
    weight, teacher = torch.randn(50, 8), torch.randn(300, 8)
    hidden = torch.randn(300, 8, requires_grad=True)
    weights = torch.rand(300)
    rows = F.kl_div(
        (hidden @ weight.T).log_softmax(-1),
        (teacher @ weight.T).log_softmax(-1),
        reduction="none",
        log_target=True,
    ).sum(-1)
    expected = (rows * weights).sum()
    found = divergence(hidden, Head(weight), teacher, weights)
    torch.testing.assert_close(found, expected)
    (a,) = torch.autograd.grad(found, hidden)
    (b,) = torch.autograd.grad(expected, hidden)
    torch.testing.assert_close(a, b)


def test_log_probs_equal_log_softmax() -> None:
    torch.manual_seed(0)
    weight, hidden, targets = torch.randn(50, 8), torch.randn(300, 8), torch.randint(0, 50, (300,))
    values, hits = log_probs(hidden, Head(weight), targets)
    full = (hidden @ weight.T).log_softmax(-1)
    torch.testing.assert_close(values, full.gather(1, targets[:, None])[:, 0])
    assert torch.equal(hits, full.argmax(-1) == targets)


def test_a_batch_without_a_target_is_refused() -> None:
    with pytest.raises(ValueError, match="target"):
        pack([Example((1, 2, 3), (0.0, 0.0, 0.0), "x")])


def test_a_first_token_is_never_a_target() -> None:
    batch = pack([Example((1, 2, 3), (1.0, 1.0, 1.0), "x")])
    assert batch.targets.tolist() == [2, 3]
    assert batch.target_index.tolist() == [0, 1]


def test_a_shared_prefix_stops_short_of_the_first_target() -> None:
    ids = tuple(range(30))
    rows = [Example((*ids, i), (0.0,) * 20 + (1.0,) * 11, str(i)) for i in (40, 41)]
    assert shared_prefix(rows) == 19


def test_identical_rows_keep_a_token_of_their_own(renderer: Renderer) -> None:
    row = encode(
        Conversation("s", (Message("user", "u" * 20), Message("assistant", "a"))), renderer
    )
    assert pack([row, row]).num_target_tokens == 2 * row.num_targets


def test_an_epoch_sees_every_row_once() -> None:
    steps = order(num_rows=10, batch_rows=4, num_steps=5, seed=0)
    stream = [i for step in steps for i in step]
    assert sorted(stream[:10]) == sorted(stream[10:20]) == list(range(10))
    assert stream[:10] != stream[10:20]
    assert steps == order(10, 4, 5, 0) != order(10, 4, 5, 1)


def test_an_opening_of_300_tokens_is_computed_once_with_equal_gradients() -> None:
    torch.manual_seed(0)
    opening = tuple(torch.randint(3, 260, (300,)).tolist())
    rows = [
        Example(
            (*opening, *torch.randint(3, 260, (100 - i,)).tolist()),
            (0.0,) * 380 + (1.0,) * (20 - i),
            str(i),
        )
        for i in range(4)
    ]
    model = build_model()
    attach(model, 4, 8.0, "all")
    for layer in adapters(model).values():
        torch.nn.init.normal_(layer.lora_b, std=0.1)
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert pack(rows).ids.shape[1] == 300 + sum(len(row.ids) - 300 for row in rows)
    losses = [packed_nats(model, rows, True), packed_nats(model, rows, False), alone(model, rows)]
    grads = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]) for loss in losses
    ]
    for other in grads[1:]:
        assert float((grads[0] - other).norm() / other.norm()) < 1e-5
