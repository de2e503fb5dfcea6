"""Checkpoints: a folder that exists when its manifest verifies, and from which training goes on.

The averaged model stands at the top, adapters in PEFT's format and other weights as a plain model
folder; below `state/` are the weights that learn, the optimizer, the gradient of a step under way
and the loop's place. safetensors and JSON only. What to keep and when to save is the stage's
decision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from timechat.errors import CheckpointError
from timechat.manifest import read_manifest, verify, write_manifest
from timechat.model.adapt import ADAPTER_WEIGHTS, adapters, peft_weights
from timechat.model.load import Loaded
from timechat.model.method import save_model
from timechat.records import CheckpointInfo
from timechat.store import Draft, build_folder, read_json, write_json, write_text
from timechat.training.loop import Begun, Trainer

STATE = "state/optimizer.safetensors"
LEARNING = "state/weights.safetensors"
GRADIENT = "state/gradient.safetensors"
AVERAGE = "state/average.safetensors"
LOOP = "state/loop.json"
CARD = "README.md"


@dataclass(frozen=True, slots=True)
class Identity:
    """What every checkpoint of a run shares: which base, which recipe, which data.

    `former` are fingerprints that the user allowed to be replaced, `made_by` the code and the
    libraries, `card` the model card.
    """

    base_path: str
    targets: str
    fingerprints: dict[str, str]
    former: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    made_by: Mapping[str, str] = field(default_factory=dict[str, str])
    card: str = ""


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
    return begin_save(folder, trainer, loaded, identity, notes)()


def begin_save(
    folder: Path,
    trainer: Trainer,
    loaded: Loaded,
    identity: Identity,
    notes: Mapping[str, Any],
    about: Mapping[str, Any] | None = None,
) -> Callable[[], CheckpointInfo]:
    """Copy everything as it is now into files beside `folder`; the result makes them a checkpoint.

    What is slow, waiting for the disk and hashing, is left to the result, which touches neither
    model nor trainer and may run in another thread while training goes on. `about` is what the
    manifest tells beside what is known here: the data's cursor, the parent.
    """
    draft = Draft(folder)
    try:
        with trainer.averaged():
            _save_model(draft.folder, loaded, identity)
        (draft.folder / "state").mkdir()
        _save_state(draft.folder, trainer, notes)
    except BaseException:
        draft.drop()
        raise
    info = CheckpointInfo(
        path=str(folder),
        step=trainer.step,
        kind="training",
        fingerprints=identity.fingerprints,
        validation_loss=notes.get("validation_loss"),
    )

    def finish() -> CheckpointInfo:
        try:
            write_manifest(draft.folder, {**_describe(info, identity), **(about or {})})
            draft.commit()
        except BaseException:
            draft.drop()
            raise
        return info

    return finish


def save_model_only(
    folder: Path, loaded: Loaded, identity: Identity, step: int, strength: float
) -> CheckpointInfo:
    """A checkpoint to answer from, not to go on from: the adapter at another strength."""
    with build_folder(folder) as beside:
        _save_model(beside, loaded, identity)
        info = CheckpointInfo(str(folder), step, "model", identity.fingerprints, strength=strength)
        write_manifest(beside, _describe(info, identity))
    return info


def restore(folder: Path, trainer: Trainer, identity: Identity) -> dict[str, Any]:
    """Put weights, optimizer and step back as they were saved; returns the stage's notes.

    Raises CheckpointError when the checkpoint is damaged or was made from other data, another
    recipe or another base, naming which.
    """
    manifest = verify(folder)
    for name, want in identity.fingerprints.items():
        found = manifest["fingerprints"].get(name)
        if found != want and found not in identity.former.get(name, ()):
            raise CheckpointError(
                f"{folder} was trained with another {name}; put it back, or start a new run"
            )
    learning = load_file(folder / LEARNING)
    average = _average(folder, trainer, learning)
    with torch.no_grad():
        for i, parameter in enumerate(trainer.parameters):
            trainer.average[i].copy_(average[i])
            parameter.copy_(learning[str(i)])
    trainer.refresh()
    _restore_optimizer(trainer, load_file(folder / STATE))
    _restore_gradient(folder, trainer)
    loop = read_json(folder / LOOP)
    trainer.step = int(loop["step"])
    trainer.rate_scale = float(loop["rate_scale"])
    trainer.begun = Begun(**loop["begun"])
    return dict(loop["notes"])


def parent_of(folder: Path) -> dict[str, Any]:
    """What the manifest of a checkpoint that follows `folder` says of it."""
    manifest = read_manifest(folder)
    return {"step": manifest["step"], "sha256": manifest["sha256"]}


def _average(folder: Path, trainer: Trainer, learning: Mapping[str, Tensor]) -> list[Tensor]:
    """The served weights in fp32, in the order of the trainer's parameters."""
    if adapters(trainer.model):
        served = load_file(folder / ADAPTER_WEIGHTS)
        return [served[name] for name in peft_weights(trainer.model)]
    kept = load_file(folder / AVERAGE) if trainer.has_average else learning
    return [kept[str(i)] for i in range(len(trainer.parameters))]


def _save_model(folder: Path, loaded: Loaded, identity: Identity) -> None:
    digest = identity.fingerprints["base"]
    save_model(loaded.model, folder, identity.base_path, digest, identity.targets)
    loaded.tokenizer.save_pretrained(folder)
    if identity.card:
        write_text(folder / CARD, identity.card)


def _save_state(folder: Path, trainer: Trainer, notes: Mapping[str, Any]) -> None:
    """Everything below `state/`: what training needs to go on as if it had never stopped."""
    learning = {str(i): p.detach().cpu() for i, p in enumerate(trainer.parameters)}
    save_file(learning, folder / LEARNING)
    if trainer.has_average and not adapters(trainer.model):
        # The model at the top is rounded; the average goes on from what it was.
        average = {str(i): p.detach().cpu() for i, p in enumerate(trainer.average)}
        save_file(average, folder / AVERAGE)
    save_file(_optimizer_tensors(trainer), folder / STATE)
    if trainer.begun.batches:
        gradient = {
            str(i): p.grad.cpu() for i, p in enumerate(trainer.parameters) if p.grad is not None
        }
        save_file(gradient, folder / GRADIENT)
    loop = {
        "step": trainer.step,
        "rate_scale": trainer.rate_scale,
        "begun": trainer.begun,
        "notes": dict(notes),
    }
    write_json(folder / LOOP, loop)


def _describe(info: CheckpointInfo, identity: Identity) -> dict[str, Any]:
    return {
        "step": info.step,
        "kind": info.kind,
        "strength": info.strength,
        "validation_loss": info.validation_loss,
        "fingerprints": info.fingerprints,
        "made_by": dict(identity.made_by),
    }


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
        # The fused kernel wants its step count where the parameter is.
        trainer.optimizer.state[parameter][name] = value.to(parameter.device)


def _restore_gradient(folder: Path, trainer: Trainer) -> None:
    """The gradient of the micro-batches of a step that was under way."""
    trainer.optimizer.zero_grad(set_to_none=True)
    if (folder / GRADIENT).is_file():
        for key, value in load_file(folder / GRADIENT).items():
            parameter = trainer.parameters[int(key)]
            parameter.grad = value.to(parameter.device)
