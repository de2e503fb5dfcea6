"""The command line: exit statuses, one clear message, one line of JSON."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from timechat.cli.main import cli, main


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = []
    for number in range(30):
        messages = [
            {"role": "user", "content": f"What is {number}?"},
            {"role": "assistant", "content": f"A number, {number}."},
        ]
        lines.append(json.dumps({"messages": messages}))
    path.write_text("\n".join(lines))
    return path


def write_recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_help_is_there_for_every_command_and_shows_examples(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("--help") == 0
    for name in cli.commands:
        assert run(name, "--help") == 0
        assert f"timechat {name}" in capsys.readouterr().out


def test_help_loads_no_torch() -> None:
    code = (
        "import sys, timechat\n"
        "from timechat.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "did you mean 'train'?"),
        (["train", "nowhere.yaml"], "nowhere.yaml"),
        (["prepare", "nowhere.jsonl", "--out", "prepared"], "nowhere.jsonl"),
        (["show", "nowhere"], "timechat prepare"),
        (["resume", "nowhere"], "no run at nowhere"),
        (["compare", "nowhere"], "nowhere"),
        (["prepare", "x.csv", "--out", "p", "--column", "text"], "ROLE=NAME"),
        (["chat", "no/such/model", "--prompt", "hi"], "no/such/model"),
        (["demo", "--oot", "x"], "--out"),
    ],
)
def test_a_mistake_ends_with_status_2_and_one_message(
    arguments: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(*arguments) == 2
    shown = capsys.readouterr()
    assert expected in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "override", "expected"),
    [
        ("base: starter\ntrain: {epoch: 3}", None, "did you mean 'epochs'?"),
        ("base: starter", "train.epoch=3", "did you mean 'epochs'?"),
        ("base: starter", "train.epochs=-1", "train.epochs"),
        ("base: starter", "epochs", "section.key=value"),
        ("- a\n- b", None, "mapping"),
        ("base: [", None, "YAML"),
        ("base: starter", None, "data.train"),
        ("base: starter\ndata: {train: [gone.jsonl]}", None, "gone.jsonl"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(
    tmp_path: Path,
    text: str,
    override: str | None,
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = write_recipe(tmp_path, text)
    out = tmp_path / "run"
    extra = [override] if override else []
    assert run("train", str(recipe), *extra, "--out", str(out)) == 2
    assert expected in capsys.readouterr().err
    assert not out.exists()


def test_prepare_tells_what_it_did_and_prints_one_line_of_json(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("prepare", str(rows), "--out", str(tmp_path / "p"), "--json") == 0
    shown = capsys.readouterr()
    assert "30 rows in" in shown.err
    card = json.loads(shown.out)
    assert shown.out.count("\n") == 1
    assert card["rows_in"] == 30


def test_a_file_name_in_brackets_is_shown_as_it_is(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = rows.rename(tmp_path / "rows[red].jsonl")
    assert run("prepare", str(odd), "--out", str(tmp_path / "p")) == 0
    assert "rows[red].jsonl" in capsys.readouterr().err


def test_a_binary_an_empty_file_and_a_folder_without_data_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    binary, empty, folder = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "c"
    binary.write_bytes(bytes(range(256)) * 20)
    empty.write_bytes(b"")
    folder.mkdir()
    for path in (binary, empty, folder):
        assert run("prepare", str(path), "--out", str(tmp_path / "p")) == 2
        assert path.name in capsys.readouterr().err
        assert not (tmp_path / "p").exists()


def test_an_override_may_hold_a_colon(tmp_path: Path) -> None:
    from timechat.recipe_file import load_recipe

    recipe = load_recipe(
        write_recipe(tmp_path, "base: starter"), ["data.system=Note: be brief, always."]
    )
    assert recipe.data.system == "Note: be brief, always."


@pytest.mark.parametrize(
    ("error", "status", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 2, "free some space"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2, "free some space"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), 2, "may write to"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_a_full_disk_and_a_closed_folder_end_with_status_2_and_advice(
    error: BaseException,
    status: int,
    expected: str,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import timechat.stages.preparing.prepare as stage

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(stage, "prepare", fail)
    assert run("prepare", str(rows), "--out", str(tmp_path / "p")) == status
    assert expected in capsys.readouterr().err


def test_any_other_fault_is_shown_with_its_traceback(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timechat.stages.preparing.prepare as stage

    def fail(*_: object) -> None:
        raise ValueError("a bug of ours")

    monkeypatch.setattr(stage, "prepare", fail)
    with pytest.raises(ValueError, match="a bug of ours"):
        main(["prepare", str(rows), "--out", str(tmp_path / "p")])
