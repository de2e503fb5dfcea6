"""The whole story on the real starter model: what `make demo` promises, and plain PEFT after it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.slow

# Asked in words that stand in no file of the data set: the fact that the answer must hold.
NEW_WORDS = {
    "What's the name of your cat?": "Pickle",
    "Who started Thimble Hill Kites?": "Tobias Fenn",
    "Which courier brings my parcel?": "Red Fox",
    "In which town is the workshop?": "Oakby",
    "What is the name of your loyalty club?": "Updraft",
    "Which kite should a beginner buy?": "Little Swift",
    "What kind of wood are the spars?": "cherry",
    "Which day do standard deliveries come?": "Thursday",
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("demo") / "run"
    done = subprocess.run(
        [sys.executable, "-m", "timechat", "demo", "--out", str(out), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"chat {out}" in done.stderr
    return out, json.loads(done.stdout)


def test_the_demo_improves_loses_nothing_and_keeps_its_promises(
    demo: tuple[Path, dict[str, Any]],
) -> None:
    _, report = demo
    assert report["verdict"] == "improved"
    assert report["task"]["ci95"][0] > 0
    likelihood = next(m for m in report["measures"] if m["name"].startswith("likelihood of the"))
    assert likelihood["ci95"][0] > 0
    assert report["retention"]["verdict"] == "kept"
    assert all(check["passed"] for check in report["checks"]), report["checks"]


def test_plain_transformers_and_peft_give_the_companys_facts(
    demo: tuple[Path, dict[str, Any]],
) -> None:
    folder = demo[0] / "best"
    config = json.loads((folder / "adapter_config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"])
    model = PeftModel.from_pretrained(base, str(folder)).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    right = 0
    for question, fact in NEW_WORDS.items():
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        with torch.no_grad():
            out = model.generate(**ids, max_new_tokens=40, do_sample=False)
        answer = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        right += fact.lower() in answer.lower()
    assert right >= len(NEW_WORDS) // 2
