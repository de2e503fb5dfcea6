"""The guard: a folder of strangers' files is looked at before anything reads it."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from timechat.errors import ModelError
from timechat.guard import MAX_CONFIG_BYTES, check_model_folder, read_config, read_header
from timechat.model.load import resolve


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "model"
    place.mkdir()
    save_file({"a": torch.zeros(2, 3), "b": torch.ones(4).bfloat16()}, place / "m.safetensors")
    (place / "config.json").write_text(json.dumps({"num_hidden_layers": 2}))
    return place


def lie(path: Path, header: dict[str, Any] | bytes, body: int, length: int | None = None) -> None:
    """Write a safetensors file whose header says what we want it to say."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    claimed = len(text) if length is None else length
    path.write_bytes(struct.pack("<Q", claimed) + text + bytes(body))


def tensor(begin: int, end: int, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> Any:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_an_honest_folder_passes(folder: Path) -> None:
    check_model_folder(folder)
    assert set(read_header(folder / "m.safetensors")) == {"a", "b"}


@pytest.mark.parametrize(
    ("header", "body", "length", "expected"),
    [
        ({}, 0, 2**63, "claims"),
        ({}, 0, 99_000_000_000, "claims"),
        ({"a": tensor(0, 8)}, 8, 10**6, "claims"),
        ({"a": tensor(0, 8), "b": tensor(4, 12)}, 12, None, "overlap"),
        ({"a": tensor(0, 8), "b": tensor(12, 20)}, 20, None, "hole"),
        ({"a": tensor(0, 8)}, 16, None, "hole"),
        ({"a": tensor(0, 16)}, 16, None, "does not add up"),
        ({"a": tensor(0, 8, (2**40, 2**40))}, 8, None, "does not add up"),
        ({"a": tensor(-8, 0)}, 8, None, "does not add up"),
        ({"a": tensor(0, 8, dtype="PICKLE")}, 8, None, "does not add up"),
        ({"a": 3}, 8, None, "does not add up"),
        (b"[1, 2]", 0, None, "not a mapping"),
        (b"{" * 100_000, 0, None, "JSON|deep"),
    ],
)
def test_a_header_that_lies_is_refused(
    folder: Path, header: Any, body: int, length: int | None, expected: str
) -> None:
    lie(folder / "m.safetensors", header, body, length)
    with pytest.raises(ModelError, match=expected):
        check_model_folder(folder)


def test_a_file_shorter_than_its_length_is_refused(folder: Path) -> None:
    (folder / "m.safetensors").write_bytes(b"abc")
    with pytest.raises(ModelError, match="no safetensors file"):
        check_model_folder(folder)


def test_json_that_only_wants_to_be_large_is_refused(folder: Path) -> None:
    bombs = {
        "deep.json": ("[" * 200_000 + "]" * 200_000, "deep"),
        "long.json": ("9" * 100_000, "JSON"),
        "broken.json": ("{", "JSON"),
        "config.json": ('{"num_hidden_layers": 1000000000}', "no model has more"),
    }
    for name, (text, expected) in bombs.items():
        (folder / name).write_text(text)
        with pytest.raises(ModelError, match=expected):
            check_model_folder(folder)
        (folder / name).unlink()
    with (folder / "config.json").open("wb") as file:
        file.truncate(MAX_CONFIG_BYTES + 1)
    with pytest.raises(ModelError, match="at most"):
        read_config(folder / "config.json")


def test_links_that_leave_the_folder_are_refused_and_the_hubs_cache_is_not(
    folder: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (folder / "extra.json").symlink_to(secret)
    with pytest.raises(ModelError, match="leaves the folder"):
        check_model_folder(folder)
    snapshot = tmp_path / "hub" / "snapshots" / "revision"
    snapshot.mkdir(parents=True)
    blob = tmp_path / "hub" / "blobs" / "digest"
    blob.parent.mkdir()
    blob.write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/digest")
    check_model_folder(snapshot)


def test_code_beside_a_model_and_auto_map_are_refused(folder: Path) -> None:
    (folder / "modeling_mine.py").write_text("print('hello')")
    with pytest.raises(ModelError, match=r"modeling_mine\.py"):
        resolve(str(folder))
    (folder / "modeling_mine.py").unlink()
    (folder / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "x.Y"}}))
    with pytest.raises(ModelError, match="auto_map"):
        resolve(str(folder))


def test_what_is_no_file_is_refused(folder: Path) -> None:
    os.mkfifo(folder / "tokenizer.json")
    with pytest.raises(ModelError, match="neither a file"):
        check_model_folder(folder)


def test_an_index_that_points_elsewhere_is_refused(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    for name, expected in (("../../x.safetensors", "not in its folder"), ("x.st", "missing")):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(ModelError, match=expected):
            check_model_folder(folder)
