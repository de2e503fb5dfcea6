"""The loop: equal to a plain reference step by step, blind to how rows are cut, exact on resume."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import build_model
from test_packing import alone, examples

from timechat.data.pack import Example, order, pack
from timechat.errors import CheckpointError, TrainingError
from timechat.manifest import newest
from timechat.model.adapt import attach
from timechat.model.load import Loaded
from timechat.model.render import Renderer
from timechat.training import checkpoint
from timechat.training.loop import fit
from timechat.training.schedule import Settings, learning_rate
from timechat.training.trainer import Trainer

SETTINGS = Settings(
    num_steps=50, learning_rate=5e-3, warmup_steps=5, weight_decay=0.01, clip=1.0, replay_weight=1.0
)
IDENTITY = checkpoint.Identity("base", "all", {"base": "b", "data": "d", "recipe": "r"})


def trainer(settings: Settings = SETTINGS) -> Trainer:
    model = build_model()
    attach(model, 4, 8.0, "all")
    return Trainer(model, settings)


def test_fifty_steps_match_a_plain_pytorch_loop(renderer: Renderer) -> None:
    rows = examples(renderer)
    chosen = order(len(rows), 2, SETTINGS.num_steps, seed=0)
    ours = trainer()
    steps = [lambda c=c: (pack([rows[i] for i in c]),) for c in chosen]
    losses = [record.loss for record in fit(ours, steps)]

    reference = build_model()
    attach(reference, 4, 8.0, "all")
    parameters = [p for p in reference.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1.0, weight_decay=0.01)
    for number, members in enumerate(chosen):
        optimizer.param_groups[0]["lr"] = learning_rate(number, SETTINGS)
        batch = [rows[i] for i in members]
        loss = alone(reference, batch) / sum(row.num_targets for row in batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        assert losses[number] == pytest.approx(float(loss.detach()), rel=2e-3, abs=1e-4)
    assert losses[-1] < losses[0] - 1


def test_cutting_a_batch_into_micro_batches_changes_nothing(renderer: Renderer) -> None:
    rows = examples(renderer)
    whole, cut = trainer(), trainer()
    a = whole.advance((pack(rows),))
    b = cut.advance((pack(rows[:1]), pack(rows[1:])))
    assert a.loss == pytest.approx(b.loss, rel=1e-5)
    assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-4)
    assert a.target_tokens == b.target_tokens
    assert a.accuracy == b.accuracy


def test_replay_is_zero_at_the_start_and_holds_the_model_back(renderer: Renderer) -> None:
    rows = examples(renderer)
    task, other = rows[:2], rows[2:]

    def drift(weight: float) -> float:
        settings = Settings(30, 5e-3, 2, 0.0, 1.0, weight)
        ours = trainer(settings)
        records = list(fit(ours, [lambda: (pack(task, other),)] * 30))
        assert records[0].replay_loss == pytest.approx(0.0, abs=1e-5)
        return records[-1].replay_loss or 0.0

    assert drift(10.0) < 0.5 * drift(0.0)


def test_a_loss_that_is_not_finite_leaves_the_weights_and_names_the_rows(
    renderer: Renderer,
) -> None:
    ours = trainer()
    before = [p.detach().clone() for p in ours.parameters]
    rows = examples(renderer)
    broken = Example(rows[0].ids, tuple(w * float("inf") for w in rows[0].weights), "broken-row")
    broken = Example(broken.ids, tuple(0.0 if w != w else w for w in broken.weights), "broken-row")
    with pytest.raises(TrainingError, match="broken-row"):
        ours.advance((pack([broken]),))
    for parameter, old in zip(ours.parameters, before, strict=True):
        assert torch.equal(parameter, old)


def test_resumed_equals_uninterrupted_byte_for_byte(
    renderer: Renderer, loaded: Loaded, tmp_path: Path
) -> None:
    rows = examples(renderer)
    chosen = order(len(rows), 2, 12, seed=0)
    steps = [lambda c=c: (pack([rows[i] for i in c]),) for c in chosen]

    def with_model(ours: Trainer) -> Loaded:
        return Loaded(loaded.source, ours.model, loaded.tokenizer, loaded.renderer)

    whole = trainer()
    list(fit(whole, steps))
    checkpoint.save(tmp_path / "whole", whole, with_model(whole), IDENTITY, {})

    first = trainer()
    stream = fit(first, steps)
    for _ in range(5):
        next(stream)
    checkpoint.save(tmp_path / "half", first, with_model(first), IDENTITY, {"seen": 5})
    second = trainer()
    assert checkpoint.restore(tmp_path / "half", second, IDENTITY) == {"seen": 5}
    list(fit(second, steps))
    checkpoint.save(tmp_path / "resumed", second, with_model(second), IDENTITY, {})
    for name in ("adapter_model.safetensors", checkpoint.STATE):
        assert (tmp_path / "whole" / name).read_bytes() == (
            tmp_path / "resumed" / name
        ).read_bytes()


@pytest.mark.parametrize("name", ["adapter_model.safetensors", checkpoint.STATE, "tokenizer.json"])
def test_one_flipped_byte_is_found_and_named(loaded: Loaded, tmp_path: Path, name: str) -> None:
    ours = trainer()
    folder = tmp_path / "step"
    with_model = Loaded(loaded.source, ours.model, loaded.tokenizer, loaded.renderer)
    ours.advance((pack(examples(loaded.renderer)),))
    checkpoint.save(folder, ours, with_model, IDENTITY, {})
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        checkpoint.restore(folder, ours, IDENTITY)


@pytest.mark.parametrize("what", ["base", "data", "recipe"])
def test_a_checkpoint_of_another_run_is_refused(loaded: Loaded, tmp_path: Path, what: str) -> None:
    ours = trainer()
    with_model = Loaded(loaded.source, ours.model, loaded.tokenizer, loaded.renderer)
    checkpoint.save(tmp_path / "s", ours, with_model, IDENTITY, {})
    other = checkpoint.Identity("base", "all", {**IDENTITY.fingerprints, what: "other"})
    with pytest.raises(CheckpointError, match=what):
        checkpoint.restore(tmp_path / "s", ours, other)


def test_a_checkpoint_without_its_manifest_does_not_exist(loaded: Loaded, tmp_path: Path) -> None:
    ours = trainer()
    with_model = Loaded(loaded.source, ours.model, loaded.tokenizer, loaded.renderer)
    for step in (1, 2):
        ours.step = step
        checkpoint.save(checkpoint.step_folder(tmp_path, step), ours, with_model, IDENTITY, {})
    (checkpoint.step_folder(tmp_path, 2) / "manifest.json").unlink()
    assert newest(tmp_path) == checkpoint.step_folder(tmp_path, 1)
    assert json.loads((checkpoint.step_folder(tmp_path, 1) / "manifest.json").read_text())


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    rates = [learning_rate(step, SETTINGS) for step in range(SETTINGS.num_steps + 1)]
    assert rates[4] == max(rates) == SETTINGS.learning_rate
    assert rates[0] == SETTINGS.learning_rate / 5
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)


def test_the_average_follows_the_weights_and_leaves_them_alone(renderer: Renderer) -> None:
    rows = examples(renderer)
    ours = trainer(replace(SETTINGS, average_steps=5.0))
    expected = [p.detach().clone() for p in ours.parameters]
    for number in range(1, 13):
        ours.advance((pack(rows),))
        decay = min(1 - 1 / 5.0, number / (number + 9))
        expected = [
            decay * a + (1 - decay) * p.detach()
            for a, p in zip(expected, ours.parameters, strict=True)
        ]
    for found, wanted in zip(ours.average, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
    before = [p.detach().clone() for p in ours.parameters]
    with ours.averaged():
        assert all(torch.equal(*pair) for pair in zip(ours.parameters, ours.average, strict=True))
        assert not all(torch.equal(*pair) for pair in zip(ours.parameters, before, strict=True))
    assert all(torch.equal(*pair) for pair in zip(ours.parameters, before, strict=True))


def test_without_averaging_what_is_served_is_the_last_step(renderer: Renderer) -> None:
    ours = trainer(replace(SETTINGS, average_steps=0.0))
    for _ in range(3):
        ours.advance((pack(examples(renderer)),))
    assert all(torch.equal(*pair) for pair in zip(ours.parameters, ours.average, strict=True))
