"""Several tuned models on one base: each answers as evaluated, and the base is there once."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
import torch
from conftest import build_model, build_tokenizer

from timechat.engine.process import ProcessEngine
from timechat.engine.protocol import Request, Sampling
from timechat.engine.torch import TorchEngine
from timechat.model.adapt import attach
from timechat.model.load import Source, load
from timechat.model.number_format import pick_dtype
from timechat.model.peft import save_adapter
from timechat.stages.serving import serve
from timechat.stages.serving.serve import find_models

PROMPT = [5, 6, 7, 8]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of some size in its own dtype, with two adapters on it."""
    folder = tmp_path_factory.mktemp("shared")
    base = build_model(hidden_size=256, intermediate_size=1024)
    base.to(dtype := pick_dtype(base.num_parameters()))
    base.save_pretrained(folder / "base")
    build_tokenizer().save_pretrained(folder / "base")
    for number in (1, 2):
        model = build_model(hidden_size=256, intermediate_size=1024).to(dtype)
        attach(model, rank=4, alpha=8.0, targets="all", seed=number)
        torch.manual_seed(number)
        for name, parameter in model.named_parameters():
            if "lora_b" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        (folder / f"tuned-{number}").mkdir()
        save_adapter(model, folder / f"tuned-{number}", str(folder / "base"), "d", "all")
        build_tokenizer().save_pretrained(folder / f"tuned-{number}")
    return folder


def engine(folder: Path, adapter: str, fold: bool) -> ProcessEngine:
    return ProcessEngine(
        {"kind": "torch", "name": adapter, "folder": str(folder / "base"),
         "adapter": str(folder / adapter), "fold": fold}
    )  # fmt: skip


def copied(pid: int) -> tuple[int, int]:
    """KiB of the base's file that a process has mapped, and has a copy of its own of."""
    size = own = 0
    ours = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = line.endswith("base/model.safetensors")
        elif ours and line.startswith(("Rss:", "Anonymous:")):
            number = int(line.split()[1])
            if line.startswith("Rss"):
                size += number
            else:
                own += number
    return size, own


async def _answer(engine: ProcessEngine) -> list[int]:
    request = Request(PROMPT, Sampling(max_new_tokens=12))
    return [d.token async for d in engine.stream(request) if d.token is not None]


def test_models_on_one_base_share_its_pages_and_answer_as_evaluated(folder: Path) -> None:
    async def play() -> dict[tuple[str, bool], tuple[list[int], tuple[int, int]]]:
        found: dict[tuple[str, bool], tuple[list[int], tuple[int, int]]] = {}
        for name, fold in (("tuned-1", False), ("tuned-2", False), ("tuned-1", True)):
            one = engine(folder, name, fold)
            await one.start()
            said = await _answer(one)
            assert one.pid is not None
            found[name, fold] = said, copied(one.pid)
            await one.stop()
        return found

    found = asyncio.run(play())
    weights = (folder / "base" / "model.safetensors").stat().st_size >> 10
    for name in ("tuned-1", "tuned-2"):
        said, (mapped, own) = found[name, False]
        assert mapped > weights * 0.8
        assert own < weights * 0.05
        evaluated = load(Source(name, folder / "base", folder / name)).model
        stream = TorchEngine(evaluated).stream(PROMPT, Sampling(max_new_tokens=12), frozenset())
        assert said == [delta.token for delta in stream if delta.token is not None]
    assert found["tuned-1", False][0] != found["tuned-2", False][0]
    _, own = found["tuned-1", True][1]
    assert own > weights * 0.5


def test_only_models_whose_base_others_share_keep_their_adapters_apart(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "_digest", lambda source: source.name)
    names = [str(folder / name) for name in ("tuned-1", "tuned-2", "base")]
    shared = find_models(names, lambda _: None)
    assert [one.shares_base for one in shared] == [True, True, True]
    assert [one.name for one in shared] == ["tuned-1", "tuned-2", "base"]
    (alone,) = find_models(names[:1], lambda _: None)
    assert not alone.shares_base
