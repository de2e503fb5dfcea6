"""Checkpoints: a folder that exists when its manifest does, and from which training goes on.

The averaged model stands at the top in PEFT's format; below `state/` are the weights that learn,
the optimizer and the loop's place. safetensors and JSON only. What to keep and when to save is the
stage's decision.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from timechat.errors import CheckpointError
from timechat.model.adapt import ADAPTER_WEIGHTS, peft_weights, save_adapter
from timechat.model.load import Loaded
from timechat.records import CheckpointInfo
from timechat.store import build_folder, read_json, sha256, write_json
from timechat.training.loop import Trainer

MANIFEST = "manifest.json"
STATE = "state/optimizer.safetensors"
LEARNING = "state/weights.safetensors"
LOOP = "state/loop.json"


@dataclass(frozen=True, slots=True)
class Identity:
    """What every checkpoint of a run shares: which base, which recipe, which data."""

    base_path: str
    targets: str
    fingerprints: dict[str, str]


def step_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:06d}"


def save(
    folder: Path,
    trainer: Trainer,
    loaded: Loaded,
    identity: Identity,
    notes: Mapping[str, Any],
) -> CheckpointInfo:
    """Write the checkpoint at `folder`; it appears whole or not at all.

    `notes` (JSON) is the stage's own memory: validations seen, the best so far.
    """
    with build_folder(folder) as beside:
        with trainer.averaged():
            _save_model(beside, loaded, identity)
        (beside / "state").mkdir()
        learning = {str(i): p.detach().cpu() for i, p in enumerate(trainer.parameters)}
        save_file(learning, beside / LEARNING)
        save_file(_optimizer_tensors(trainer), beside / STATE)
        write_json(beside / LOOP, {"step": trainer.step, "notes": dict(notes)})
        info = CheckpointInfo(
            path=str(folder),
            step=trainer.step,
            kind="training",
            fingerprints=identity.fingerprints,
            validation_loss=notes.get("validation_loss"),
        )
        _write_manifest(beside, info)
    return info


def save_model_only(
    folder: Path, loaded: Loaded, identity: Identity, step: int, strength: float
) -> CheckpointInfo:
    """A checkpoint to answer from, not to go on from: the adapter at another strength."""
    with build_folder(folder) as beside:
        _save_model(beside, loaded, identity)
        info = CheckpointInfo(str(folder), step, "model", identity.fingerprints, strength=strength)
        _write_manifest(beside, info)
    return info


def verify(folder: Path) -> dict[str, Any]:
    """The manifest, when every file it names is there with its size and SHA-256.

    Raises CheckpointError naming the first file that is not.
    """
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(f"{folder} is no checkpoint: it has no {MANIFEST}")
    manifest = read_json(folder / MANIFEST)
    for name, want in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{folder} is damaged: {name} is missing")
        if file.stat().st_size != want["bytes"] or sha256(file) != want["sha256"]:
            raise CheckpointError(f"{folder} is damaged: {name} is not what was saved")
    return manifest


def restore(folder: Path, trainer: Trainer, identity: Identity) -> dict[str, Any]:
    """Put weights, optimizer and step back as they were saved; returns the stage's notes.

    Raises CheckpointError when the checkpoint is damaged or was made from other data, another
    recipe or another base, naming which.
    """
    manifest = verify(folder)
    for name, want in identity.fingerprints.items():
        if manifest["fingerprints"].get(name) != want:
            raise CheckpointError(
                f"{folder} was trained with another {name}; put it back, or start a new run"
            )
    learning = load_file(folder / LEARNING)
    served = load_file(folder / ADAPTER_WEIGHTS)
    with torch.no_grad():
        for i, name in enumerate(peft_weights(trainer.model)):
            trainer.average[i].copy_(served[name])
            trainer.parameters[i].copy_(learning[str(i)])
    _restore_optimizer(trainer, load_file(folder / STATE))
    loop = read_json(folder / LOOP)
    trainer.step = int(loop["step"])
    return dict(loop["notes"])


def newest(run: Path) -> Path | None:
    """The newest checkpoint that training can go on from and that verifies."""
    for folder in sorted((run / "checkpoints").glob("step-??????"), reverse=True):
        try:
            if verify(folder)["kind"] == "training":
                return folder
        except CheckpointError:
            folder.rename(folder.with_name(f"damaged-{folder.name}"))
    return None


def _save_model(folder: Path, loaded: Loaded, identity: Identity) -> None:
    digest = identity.fingerprints["base"]
    save_adapter(loaded.model, folder, identity.base_path, digest, identity.targets)
    loaded.tokenizer.save_pretrained(folder)


def _write_manifest(folder: Path, info: CheckpointInfo) -> None:
    files = {
        str(file.relative_to(folder)): {"bytes": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    content = {
        "format": 1,
        "step": info.step,
        "kind": info.kind,
        "strength": info.strength,
        "validation_loss": info.validation_loss,
        "fingerprints": info.fingerprints,
        "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n")


def _optimizer_tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for i, parameter in enumerate(trainer.parameters):
        for name, value in trainer.optimizer.state.get(parameter, {}).items():
            tensors[f"{i}.{name}"] = value.detach().cpu().contiguous()
    return tensors


def _restore_optimizer(trainer: Trainer, tensors: Mapping[str, torch.Tensor]) -> None:
    trainer.optimizer.state.clear()
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        parameter = trainer.parameters[int(index)]
        device = "cpu" if name == "step" else parameter.device
        trainer.optimizer.state[parameter][name] = value.to(device)
