"""The model card that lies beside every export: what it is, how it was proven, how to use it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timechat.model.starter import FOLDER
from timechat.records import Measure


@dataclass(frozen=True, slots=True)
class Facts:
    """What a card tells. `report` is the run's `report.json`, where there is one."""

    name: str
    form: str
    base: str
    figures: tuple[str, ...]
    system: str = ""
    report: dict[str, Any] | None = None
    measures: tuple[Measure, ...] = ()
    use: str = ""
    notes: tuple[str, ...] = ()


def write_card(facts: Facts) -> str:
    """The card as Markdown, with the front matter that model hubs read."""
    parts = [
        "---",
        f"base_model: {json.dumps(facts.base)}",
        "library_name: " + {"gguf": "gguf", "adapter": "peft"}.get(facts.form, "transformers"),
        "pipeline_tag: text-generation",
        "tags: [timechat, chat]",
        "---",
        "",
        f"# {facts.name}",
        "",
        f"A chat model made with TimeChat from `{facts.base}`, as {_FORMS[facts.form]}.",
        "",
        *_proof(facts.report),
        "## The gate",
        "",
        "What lies here was read back from its files and asked held-out prompts beside the model "
        "that was evaluated; without passing there would be no export.",
        "",
        *(f"- {figure}" for figure in facts.figures),
        *(f"- {note}" for note in facts.notes),
        "",
        *_cost(facts.measures),
        "## Use",
        "",
        "```",
        facts.use.strip(),
        "```",
        "",
        "Answers were evaluated greedily (temperature 0, no repetition penalty) under the chat "
        "template that travels with the files"
        + (f", whose system prompt is: {facts.system!r}." if facts.system else "."),
        "",
    ]
    return "\n".join(parts)


_FORMS = {
    "adapter": "a PEFT adapter",
    "merged": "merged safetensors",
    "gguf": "a GGUF file",
}


def _proof(report: dict[str, Any] | None) -> list[str]:
    if report is None:
        return []
    checks = [f"| {c['name']} | {'yes' if c['passed'] else 'NO'} | {c['figure']} |"
              for c in report["checks"]]  # fmt: skip
    return [
        "## What training did",
        "",
        str(report["headline"]),
        "",
        f"Verdict: {report['verdict']}.",
        "",
        "| check | holds | figure |",
        "|---|---|---|",
        *checks,
        "",
    ]


def _cost(measures: Sequence[Measure]) -> list[str]:
    """What the format costs, on the task and on what the model could do before."""
    if not measures:
        return []
    rows = [
        f"| {m.name} | {m.before:.4g} | {m.after:.4g} | {m.difference:+.4g} "
        f"| {m.ci95[0]:+.4g} to {m.ci95[1]:+.4g} | {m.n} | {m.verdict} |"
        for m in measures
    ]
    return [
        "## What this format costs",
        "",
        "The evaluated model (before) and this export (after) on the same questions; positive is "
        "better.",
        "",
        "| measure | before | after | difference | 95 % interval | n | verdict |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def use_of(form: str, folder: str, file: str = "", base: str = "") -> str:
    """Three ways to talk to it."""
    if form == "adapter":
        return f"""timechat chat {folder}
python -c "from peft import AutoPeftModelForCausalLM as M; M.from_pretrained('{folder}')"
vllm serve {base} --enable-lora --lora-modules mine={folder}"""
    if form == "merged":
        return f"""timechat chat {folder}
python -c "from transformers import pipeline; pipeline('text-generation', '{folder}')"
vllm serve {folder}"""
    return f"""ollama create mine -f Modelfile && ollama run mine
llama-server -m {file} --jinja
lms import {file}"""


def base_name(folder: Path) -> str:
    """The Hub id of a base that lies in the Hub's cache, else where it is on this machine."""
    for part in folder.parts:
        if part.startswith("models--"):
            return "/".join(part.split("--")[1:])
    return str(folder)


def card_base(folder: Path) -> str:
    """A base's name for people: the starter's own, a Hub id, or what its folder is called."""
    if folder.name == FOLDER:
        return "HuggingFaceTB/SmolLM2-135M-Instruct"
    name = base_name(folder)
    return folder.name if name == str(folder) else name
