"""The model card of a checkpoint, in Hugging Face's form: what it is, made of what, good for what.

It says what is known and names what is not; it praises nothing. The run's report is added to the
best checkpoint's card when there is one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from timechat.manifest import MANIFEST, read_manifest, write_manifest
from timechat.model.starter import FOLDER
from timechat.recipe_file import dump_recipe
from timechat.records import Report
from timechat.stages.training.context import Context
from timechat.stages.training.select import Candidate
from timechat.store.files import write_text
from timechat.store.folders import build_folder
from timechat.training.checkpoint import CARD

UNKNOWN = "unknown"
# Licences of models that are fetched by name, and so carry no file that says it.
LICENCES = {FOLDER: ("apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct")}


def model_card(context: Context, candidates: Sequence[Candidate], step: int) -> str:
    """The card of the checkpoint at `step`."""
    licence, name = base_licence(context.loaded.source.folder, context.recipe.base)
    front = {
        "base_model": name,
        "library_name": "peft" if context.recipe.adapt.method == "lora" else "transformers",
        "pipeline_tag": "text-generation",
        "license": "other" if licence == UNKNOWN else licence,
        "tags": ["timechat", context.recipe.adapt.method, "text-generation", "conversational"],
    }
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
        f"# {context.out.resolve().name}, step {step}\n",
        f"{name}, tuned with TimeChat ({context.recipe.adapt.method}) "
        "on conversations of its own.\n",
        _licences(licence, context),
        _use(context),
        _data(context),
        _training(context, candidates),
    ]
    return "\n".join(parts)


def base_licence(folder: Path, base: str) -> tuple[str, str]:
    """The licence that a base's own card names, and the base's name."""
    if folder.name in LICENCES:
        return LICENCES[folder.name]
    card = folder / CARD
    if card.is_file():
        text = card.read_text(encoding="utf-8", errors="replace")
        _, _, rest = text.partition("---\n")
        front, _, _ = rest.partition("\n---")
        try:
            found: Any = yaml.safe_load(front)
        except yaml.YAMLError:
            found = None
        if isinstance(found, dict) and isinstance(found.get("license"), str):
            return found["license"], base
    return UNKNOWN, base


def finish_card(context: Context, report: Report) -> None:
    """Add the report to the best checkpoint's card, in a folder that replaces it whole."""
    best = (context.out / "best").resolve()
    text = (best / CARD).read_text(encoding="utf-8").partition("\n## Report\n")[0]
    _rewrite(best, f"{text}\n## Report\n\n{_report(report)}")


def _rewrite(folder: Path, card: str) -> None:
    """The same checkpoint with another card. Its large files are linked, not copied."""
    manifest = read_manifest(folder)
    with build_folder(folder) as beside:
        for name in manifest["files"]:
            if name == CARD:
                continue
            (beside / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(folder / name, beside / name)
            except OSError:  # a file system without hard links
                shutil.copyfile(folder / name, beside / name)
        write_text(beside / CARD, card)
        kept = {k: v for k, v in manifest.items() if k not in ("files", "sha256", "format")}
        write_manifest(beside, kept)
    assert (folder / MANIFEST).is_file()


def _licences(licence: str, context: Context) -> str:
    base = licence if licence != UNKNOWN else "not stated in its folder: look at its source"
    stated = {str(s["license"]) for s in context.prepared.card.sources.values() if "license" in s}
    data = ", ".join(sorted(stated)) or "not stated: say it here before you share this model"
    return f"## Licence\n\n- of the base: {base}\n- of the data: {data}\n"


def _use(context: Context) -> str:
    system = context.recipe.data.system or context.prepared.card.system
    prompt = f"\n\nIts system prompt, which its chat template brings: {system!r}." if system else ""
    return (
        "## Intended use and limits\n\nTo answer the kind of question that it was trained on, in "
        f"the words of its own chat template.{prompt}\n\nIt states wrong things with confidence, "
        "above all outside of what it was trained on, and may repeat what stands in its data, "
        "private things included. It keeps the faults of its base. The report of its run tells how "
        "often it was right on questions that it had not seen, and what it lost elsewhere.\n"
    )


def _data(context: Context) -> str:
    card = context.prepared.card
    splits = ", ".join(f"{count:,} {name}" for name, count in card.splits.items())
    rows = "\n".join(
        f"| {Path(name).name} | {source.get('rows', '')} | {source.get('kept', '')} "
        f"| `{str(source.get('sha256', ''))[:16]}` |"
        for name, source in card.sources.items()
    )
    return (
        f"## Data\n\n{card.rows_in:,} rows in: {splits}; {card.rows_dropped:,} dropped. Digest of "
        f"the prepared rows: `{card.digest[:16]}`.\n\n| file | rows | kept | SHA-256 begins |\n"
        f"|---|---|---|---|\n{rows}\n"
    )


def _training(context: Context, candidates: Sequence[Candidate]) -> str:
    names = ("steps", "epochs", "batch_rows", "learning_rate", "trained_parameters")
    numbers = "\n".join(f"| {name.replace('_', ' ')} | {context.plan[name]} |" for name in names)
    looks = "\n".join(f"| {c.step} | {c.loss:.4f} | {c.accuracy:.1%} |" for c in candidates)
    versions = ", ".join(f"{n} {v}" for n, v in context.record.made_by.items() if n != "code")
    return (
        f"## Training\n\n| what | value |\n|---|---|\n{numbers}\n\n"
        "| step | validation loss | greedy accuracy per token |\n|---|---|---|\n"
        f"{looks}\n\nMade with {versions}.\n\n"
        f"```yaml\n{dump_recipe(context.recipe)}```\n"
    )


def _report(report: Report) -> str:
    rows = "\n".join(
        f"| {m.name} | {m.before:.4g} | {m.after:.4g} | {m.difference:+.4g} "
        f"| [{m.ci95[0]:+.4g}, {m.ci95[1]:+.4g}] | {m.n} | {m.verdict} |"
        for m in report.measures
    )
    checks = "\n".join(
        f"- {check.name}: {'passed' if check.passed else 'failed'}; {check.figure}"
        for check in report.checks
    )
    return (
        f"{report.headline}\n\nVerdict: **{report.verdict}**\n\n"
        "| measure | before | after | difference | 95 % interval | n | verdict |\n"
        f"|---|---|---|---|---|---|---|\n{rows}\n\n{checks}\n"
    )
