"""The manifest: a checkpoint exists when every byte that was saved is there, and no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from timechat.errors import CheckpointError
from timechat.manifest import MANIFEST, checkpoints, newest, read_manifest, verify, write_manifest


def make(run: Path, step: int) -> Path:
    folder = run / "checkpoints" / f"step-{step:06d}"
    (folder / "state").mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(range(256)))
    (folder / "state" / "loop.json").write_text('{"step": 1}')
    write_manifest(folder, {"step": step, "kind": "training"})
    return folder


def test_what_was_written_verifies_and_is_described(tmp_path: Path) -> None:
    folder = make(tmp_path, 7)
    manifest = verify(folder)
    assert manifest["step"] == 7
    assert set(manifest["files"]) == {"weights", "state/loop.json"}
    assert all(set(file) == {"bytes", "sha256"} for file in manifest["files"].values())


@pytest.mark.parametrize("name", ["weights", "state/loop.json", MANIFEST])
def test_any_flipped_bit_is_found_and_its_file_named(tmp_path: Path, name: str) -> None:
    folder = make(tmp_path, 7)
    good = (folder / name).read_bytes()
    for place in range(len(good)):
        for bit in (0x01, 0x80):
            content = bytearray(good)
            content[place] ^= bit
            (folder / name).write_bytes(content)
            with pytest.raises(CheckpointError, match=Path(name).name):
                verify(folder)
    (folder / name).write_bytes(good)
    verify(folder)


def test_missing_cut_and_added_files_are_found(tmp_path: Path) -> None:
    folder = make(tmp_path, 7)
    (folder / "added.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"added\.json was not saved"):
        verify(folder)
    (folder / "added.json").unlink()
    (folder / "weights").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="5 bytes, 256 were saved"):
        verify(folder)
    (folder / "weights").unlink()
    with pytest.raises(CheckpointError, match="missing"):
        verify(folder)
    (folder / "weights").symlink_to("/etc/hostname")
    with pytest.raises(CheckpointError, match="link"):
        verify(folder)


def test_only_the_model_needs_no_hash_of_what_training_reads(tmp_path: Path) -> None:
    folder = make(tmp_path, 7)
    (folder / "state" / "loop.json").write_text('{"step": 2}')
    verify(folder, only_model=True)
    with pytest.raises(CheckpointError, match="loop"):
        verify(folder)


def test_a_manifest_of_another_version_or_with_a_way_out_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path, 7)
    (folder / MANIFEST).write_text(json.dumps({"format": 1, "files": {}}))
    with pytest.raises(CheckpointError, match="not what was saved"):
        read_manifest(folder)


def test_the_newest_good_one_is_found_and_damaged_ones_are_set_aside_aloud(tmp_path: Path) -> None:
    folders = [make(tmp_path, step) for step in (2, 10, 1_000_000)]
    assert [p.name for p in checkpoints(tmp_path)] == [
        "step-1000000", "step-000010", "step-000002",
    ]  # fmt: skip
    (folders[2] / "weights").write_bytes(b"")
    (folders[1] / MANIFEST).unlink()
    said: list[str] = []
    assert newest(tmp_path, said.append) == folders[0]
    assert "weights has 0 bytes" in said[0]
    assert "set aside as damaged-step-1000000" in said[0]
    assert (tmp_path / "checkpoints" / "damaged-step-000010").is_dir()
    (folders[0] / "weights").unlink()
    assert newest(tmp_path, said.append) is None
