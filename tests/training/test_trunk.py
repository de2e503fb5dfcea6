"""A kept trunk: the same numbers as without, in memory and on disk, nothing worked out twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from methods import FAMILIES, build, held, rows, start

from timechat.data.pack import pack
from timechat.model.choose import layer_list
from timechat.model.paths import Path as ReadPath
from timechat.model.paths import path_of
from timechat.model.recompute import recompute_layers
from timechat.training.schedule import Settings
from timechat.training.trainer import Trainer
from timechat.training.trunk import Trunk

SETTINGS = Settings(
    num_steps=50, learning_rate=2e-3, warmup_steps=5, weight_decay=0.1, clip=1.0, replay_weight=1.0
)


def trainer(family: str, kept: bool, file: Path | None = None, again: bool = False) -> Trainer:
    model = build(family)
    made = Trainer(model, SETTINGS, start(model, "layers"))
    if again:
        recompute_layers(model)
    if kept:
        made.trunk = Trunk(model, 2, file)
        made.trunk.fill([*rows(), *held()])
    return made


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("place", ["memory", "disk", "recomputed"])
def test_steps_from_a_kept_trunk_equal_steps_without(
    family: str, place: str, tmp_path: Path
) -> None:
    plain = trainer(family, kept=False)
    kept = trainer(family, True, tmp_path / "t" if place == "disk" else None, place == "recomputed")
    assert path_of(kept.model) is not ReadPath.PADDED
    for number in range(6):
        batches = (pack(rows()[number % 2 :], held()), pack(rows()[:2], share_prefix=False))
        one, two = plain.advance(batches), kept.advance(batches)
        assert two.loss == pytest.approx(one.loss, rel=1e-5)
        assert two.replay_loss == pytest.approx(one.replay_loss, rel=1e-3, abs=1e-6)
        assert two.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)


def test_the_trunk_is_worked_out_once_a_row() -> None:
    made = trainer("llama", kept=True)
    calls: list[int] = []
    for number, layer in enumerate(layer_list(made.model)[1]):
        layer.self_attn.register_forward_hook(lambda *_, number=number: calls.append(number))
    for _ in range(3):
        made.advance((pack(rows(), held()),))
    assert set(calls) == {2, 3}
    assert made.trunk is not None
    assert made.trunk.num_bytes == sum(len(r.ids) for r in [*rows(), *held()]) * 32 * 4


def test_a_filled_trunk_is_the_same_bytes_each_time() -> None:
    one, two = trainer("llama", True).trunk, trainer("llama", True).trunk
    assert one is not None
    assert two is not None
    for key, value in one._kept.items():
        assert torch.equal(value, two._kept[key])


def test_the_models_own_forward_is_put_back() -> None:
    made = trainer("llama", kept=True)
    made.advance((pack(rows()),))
    assert all("forward" not in vars(layer) for layer in layer_list(made.model)[1])
