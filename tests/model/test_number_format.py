"""A model computes in the number format that this machine multiplies faster, not in the one that
its flags promise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import build_model, build_tokenizer

from timechat.model import number_format
from timechat.model.load import count_weights, load, resolve
from timechat.model.number_format import bf16_over_fp32, has_fast_bf16, pick_dtype, remembered

SMALL, LARGE = 1_000_000, 10**13


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU, and nothing remembered."""
    monkeypatch.setenv("TIMECHAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    has_fast_bf16.cache_clear()
    yield
    has_fast_bf16.cache_clear()


def machine(monkeypatch: pytest.MonkeyPatch, has: bool, narrow: float = 1.0) -> list[int]:
    """A CPU with or without bf16, at `narrow` times the rate of fp32; counts its measurements."""
    asked: list[int] = []

    def rates(dtypes: Sequence[torch.dtype]) -> list[float]:
        asked.append(len(dtypes))
        return [narrow * 1e11 if dtype == torch.bfloat16 else 1e11 for dtype in dtypes]

    monkeypatch.setattr(number_format, "has_bf16", lambda: has)
    monkeypatch.setattr(number_format, "matrix_rates", rates)
    return asked


@pytest.mark.parametrize(
    ("has", "narrow", "small", "large"),
    [
        (True, 2.0, torch.bfloat16, torch.bfloat16),
        (True, 0.5, torch.float32, torch.bfloat16),
        (False, 2.0, torch.float32, torch.float32),
    ],
    ids=["fast bf16", "slow bf16", "no bf16"],
)
def test_the_faster_format_is_taken_where_its_weights_fit(
    monkeypatch: pytest.MonkeyPatch,
    has: bool,
    narrow: float,
    small: torch.dtype,
    large: torch.dtype,
) -> None:
    machine(monkeypatch, has, narrow)
    assert (pick_dtype(SMALL), pick_dtype(LARGE)) == (small, large)


def test_it_is_measured_once_for_all_processes_of_a_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = machine(monkeypatch, True, 0.5)
    assert not has_fast_bf16()
    has_fast_bf16.cache_clear()  # as another process
    assert not has_fast_bf16()
    assert asked == [2]
    monkeypatch.setattr(number_format, "cpu_name", lambda: "another")
    assert bf16_over_fp32() == 0.5
    assert asked == [2, 2]


@pytest.mark.parametrize("left", ["", "[]", '{"about": 1}', '{"bf16_over_fp32": "fast"}'])
def test_a_damaged_memory_is_measured_anew(monkeypatch: pytest.MonkeyPatch, left: str) -> None:
    asked = machine(monkeypatch, True, 2.0)
    remembered().parent.mkdir(parents=True)
    remembered().write_text(left)
    assert has_fast_bf16()
    assert asked == [2]


def test_a_model_is_loaded_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    assert count_weights(tmp_path / "model") == sum(p.numel() for p in model.parameters())
    for narrow, dtype in ((0.5, torch.float32), (2.0, torch.bfloat16)):
        machine(monkeypatch, True, narrow)
        remembered().unlink(missing_ok=True)
        has_fast_bf16.cache_clear()
        assert load(resolve(str(tmp_path / "model"))).model.dtype == dtype
