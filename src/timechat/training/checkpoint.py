"""Checkpoints: a folder that exists when its manifest verifies, and from which training goes on.

The averaged model stands at the top, adapters in PEFT's format and other weights as a plain model
folder; below `state/` are the weights that learn, the optimizer, the gradient of a step under way
and the loop's place. safetensors and JSON only; of several ranks each writes what it has. What to
keep and when to save is the stage's decision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from timechat.errors import CheckpointError
from timechat.manifest import read_manifest, verify, write_manifest
from timechat.model.adapt import adapters
from timechat.model.load import Loaded
from timechat.model.method import save_model
from timechat.model.peft import ADAPTER_WEIGHTS, peft_weights
from timechat.model.ranks import ALONE, Ranks
from timechat.records import CheckpointInfo
from timechat.store.files import read_json, write_json, write_text
from timechat.store.folders import Draft, build_folder, system_errors
from timechat.training.pieces import Pieces, Rows, write_pieces
from timechat.training.trainer import Begun, Trainer

STATE = "state/optimizer.safetensors"
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
    info = begin_save(folder, trainer, loaded, identity, notes)()
    trainer.ranks.wait()
    return info


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
    manifest tells beside what is known here: the data's cursor, the parent. Every rank calls this,
    and the result of the first makes the checkpoint.
    """
    ranks = trainer.ranks
    draft = Draft(folder) if ranks.is_first else None
    beside = ranks.tell(draft.folder if draft else folder)
    try:
        with system_errors(folder):
            with trainer.averaged():
                _save_model(beside, loaded, identity, ranks)
            (beside / "state").mkdir(exist_ok=True)
            _save_state(beside, trainer, notes)
        ranks.wait()
    except BaseException:
        if draft:
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
        if draft is None:
            return info
        try:
            write_manifest(draft.folder, {**_describe(info, identity), **(about or {})})
            draft.commit()
        except BaseException:
            draft.drop()
            raise
        return info

    return finish


def save_model_only(
    folder: Path,
    loaded: Loaded,
    identity: Identity,
    step: int,
    strength: float,
    ranks: Ranks = ALONE,
) -> CheckpointInfo:
    """A checkpoint to answer from, not to go on from: the adapter at another strength."""
    info = CheckpointInfo(str(folder), step, "model", identity.fingerprints, strength=strength)
    if not ranks.is_first:
        _save_model(ranks.tell(folder), loaded, identity, ranks)
        ranks.wait()
        return info
    with build_folder(folder) as beside:
        _save_model(ranks.tell(beside), loaded, identity, ranks)
        ranks.wait()
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
    state = folder / "state"
    learning = Pieces(state, "weights")
    average = _average(folder, trainer, learning)
    with torch.no_grad():
        for i, parameter in enumerate(trainer.parameters):
            trainer.average[i].copy_(average[i])
            parameter.copy_(_own(learning, str(i), trainer, i))
    trainer.refresh()
    _restore_optimizer(trainer, Pieces(state, "optimizer"))
    loop = read_json(folder / LOOP)
    trainer.step = int(loop["step"])
    trainer.rate_scale = float(loop["rate_scale"])
    trainer.begun = Begun()
    trainer.optimizer.zero_grad(set_to_none=True)
    if trainer.ranks.count == 1:  # several begin the step anew: they deal its rows out otherwise
        trainer.begun = Begun(**loop["begun"])
        _restore_gradient(Pieces(state, "gradient"), trainer)
    return dict(loop["notes"])


def parent_of(folder: Path) -> dict[str, Any]:
    """What the manifest of a checkpoint that follows `folder` says of it."""
    manifest = read_manifest(folder)
    return {"step": manifest["step"], "sha256": manifest["sha256"]}


def _average(folder: Path, trainer: Trainer, learning: Pieces) -> list[Tensor]:
    """The served weights in fp32, in the order of the trainer's parameters."""
    if adapters(trainer.model):
        served = load_file(folder / ADAPTER_WEIGHTS)
        return [served[name] for name in peft_weights(trainer.model)]
    kept = Pieces(folder / "state", "average") if trainer.has_average else learning
    return [_own(kept, str(i), trainer, i) for i in range(len(trainer.parameters))]


def _own(pieces: Pieces, key: str, trainer: Trainer, number: int) -> Tensor:
    """This rank's part of what belongs to the trainer's parameter `number`."""
    return pieces.read(key, trainer.rows[number], len(trainer.parameters[number]))


def _save_model(folder: Path, loaded: Loaded, identity: Identity, ranks: Ranks) -> None:
    digest = identity.fingerprints["base"]
    save_model(loaded.model, folder, identity.base_path, digest, identity.targets, ranks)
    if not ranks.is_first:
        return
    loaded.tokenizer.save_pretrained(folder)
    if identity.card:
        write_text(folder / CARD, identity.card)


def _save_state(folder: Path, trainer: Trainer, notes: Mapping[str, Any]) -> None:
    """Everything below `state/`: what training needs to go on as if it had never stopped."""

    def write(name: str, tensors: Mapping[int, Tensor]) -> None:
        parts = {str(i): (tensor, trainer.rows[i]) for i, tensor in tensors.items()}
        write_pieces(folder / "state", name, parts, trainer.ranks)

    write("weights", dict(enumerate(trainer.parameters)))
    if trainer.has_average and not adapters(trainer.model):
        # The model at the top is rounded; the average goes on from what it was.
        write("average", dict(enumerate(trainer.average)))
    write_pieces(folder / "state", "optimizer", _optimizer_tensors(trainer), trainer.ranks)
    if trainer.begun.batches:
        grads = {i: p.grad for i, p in enumerate(trainer.parameters) if p.grad is not None}
        write("gradient", grads)
    loop = {
        "step": trainer.step,
        "rate_scale": trainer.rate_scale,
        "begun": trainer.begun,
        "notes": dict(notes),
    }
    if trainer.ranks.is_first:
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


def _optimizer_tensors(trainer: Trainer) -> dict[str, tuple[Tensor, Rows]]:
    tensors: dict[str, tuple[Tensor, Rows]] = {}
    for i, parameter in enumerate(trainer.parameters):
        for name, value in trainer.optimizer.state.get(parameter, {}).items():
            # The step count has no rows.
            tensors[f"{i}.{name}"] = (value, trainer.rows[i] if value.dim() else None)
    return tensors


def _restore_optimizer(trainer: Trainer, pieces: Pieces) -> None:
    trainer.optimizer.state.clear()
    for key in pieces.keys():  # noqa: SIM118 - it is no mapping
        index, _, name = key.partition(".")
        parameter = trainer.parameters[int(index)]
        value = pieces.read(key) if name == "step" else _own(pieces, key, trainer, int(index))
        # The fused kernel wants its step count where the parameter is.
        trainer.optimizer.state[parameter][name] = value.to(parameter.device)


def _restore_gradient(pieces: Pieces, trainer: Trainer) -> None:
    """The gradient of the micro-batches of a step that was under way."""
    for key in pieces.keys():  # noqa: SIM118 - it is no mapping
        parameter = trainer.parameters[int(key)]
        parameter.grad = _own(pieces, key, trainer, int(key)).to(parameter.device)
