"""Scripts as people write them for OpenAI's fine-tuning, unchanged but for the address.

They stand in `wild/`, each in a style that is met in public repositories (none is copied), and run
as processes of their own. They name OpenAI's model, so the server serves one under that name.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from serve.tuning_site import Place, open_place, rows

WILD = Path(__file__).parent / "wild"
NAME = "gpt-4o-mini-2024-07-18"


@pytest.fixture(scope="module")
def wild(tmp_path_factory: pytest.TempPathFactory) -> Generator[Place]:
    with open_place(tmp_path_factory.mktemp("state"), NAME) as place:
        yield place


def run(place: Place, folder: Path, *words: str) -> str:
    (folder / "train.jsonl").write_bytes(rows(20))
    (folder / "valid.jsonl").write_bytes(rows(10))
    env = os.environ | {"OPENAI_BASE_URL": f"{place.url}/v1", "OPENAI_API_KEY": "key-a"}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("cookbook", "I am ft:"),
        ("module", "wandb is not connected here"),
        ("asynchronous", "I am ft:"),
        ("parts", "step,train_loss,train_accuracy"),
        ("plain", "I am ft:"),
    ],
)
def test_a_script_in_the_wild_runs_with_only_its_address_changed(
    script: str, words: str, wild: Place, tmp_path: Path
) -> None:
    assert words in run(wild, tmp_path, str(WILD / f"{script}.py"))


@pytest.mark.slow
def test_the_clients_own_command_line_fine_tunes_here(wild: Place, tmp_path: Path) -> None:
    """`openai api …`, which the 1.x clients bring and the newest have dropped."""
    ask = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", "old", "openai<2"]
    done = subprocess.run(ask, cwd=tmp_path, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"pip could not install openai<2: {done.stderr[-300:]}")

    def api(*words: str) -> str:
        code = "import sys; sys.path.insert(0, 'old'); from openai.cli import main; main()"
        return run(wild, tmp_path, "-c", code, "api", *words)

    file = json.loads(api("files.create", "-f", "train.jsonl", "-p", "fine-tune"))["id"]
    assert file in api("files.list")
    made = api("fine_tuning.jobs.create", "-m", NAME, "-F", file, "-H", '{"n_epochs": 2}')
    job = json.loads(made)["id"]
    for _ in range(100):
        status = json.loads(api("fine_tuning.jobs.retrieve", "-i", job))["status"]
        if status == "succeeded":
            break
        assert status in ("validating_files", "queued", "running")
    assert "Created fine-tuning job" in api("fine_tuning.jobs.list_events", "-i", job)
    assert job in api("fine_tuning.jobs.list")
    tuned = json.loads(api("fine_tuning.jobs.retrieve", "-i", job))["fine_tuned_model"]
    said = api("chat.completions.create", "-m", tuned, "-g", "user", "Who are you?")
    assert re.search("I am ft:", said)
