"""Tuning: make the model ready to learn, prove the loop, train, choose a checkpoint and a strength.

Several ranks do all of this together. What is asked before and after is `train`'s business.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

from timechat.model.load import Loaded, load_tokenizer
from timechat.model.method import begin, name_targets
from timechat.model.paths import Path as ReadPath
from timechat.model.paths import path_of
from timechat.model.recompute import recompute_layers
from timechat.model.render import Renderer
from timechat.recipe import Lora
from timechat.records import Check
from timechat.stages.batches import replay_batches
from timechat.stages.card import model_card
from timechat.stages.checks import check_gradient, check_resume, check_rows, check_template
from timechat.stages.keep import point
from timechat.stages.learn import Learner
from timechat.stages.room import Room
from timechat.stages.select import Candidate, choose_checkpoint, choose_strength
from timechat.store import read_json, write_json, write_lines
from timechat.training import checkpoint
from timechat.training.loop import Settings, Trainer
from timechat.training.trunk import Trunk


def tune(room: Room) -> tuple[list[Check], float]:
    """Train, choose a checkpoint and a strength, and leave the model at both.

    Returns the checks that could be made on the way, and the strength.
    """
    loaded, plan, recipe = room.loaded, room.plan, room.recipe
    alpha = plan["alpha"] if isinstance(recipe.adapt, Lora) else 0.0
    replay_batches(room)  # the base's own answers are asked while it is the base
    path_of(loaded.model)  # tried while the weights are whole, on every rank
    change = begin(loaded.model, recipe.adapt, alpha, recipe.train.seed, room.ranks)
    if plan["recompute"]:
        recompute_layers(loaded.model)
    settings = Settings(
        num_steps=plan["steps"],
        learning_rate=plan["learning_rate"],
        warmup_steps=plan["warmup_steps"],
        weight_decay=recipe.train.weight_decay,
        clip=recipe.train.clip,
        replay_weight=recipe.train.replay_weight,
        average_steps=recipe.train.average * plan["steps"],
        schedule=recipe.train.schedule,
    )
    trainer = Trainer(loaded.model, settings, change)
    identity = _identity(room)
    _keep_trunk(room, trainer)
    served = _served(room)
    checks = _checks_at_start(room, trainer, served, identity)
    candidates = Learner(room, trainer, served, identity).run()
    best = choose_checkpoint(candidates)
    _restore_weights(room, trainer, identity, best)
    trainer.trunk = None
    shutil.rmtree(room.out / "trunk", ignore_errors=True)
    strength = _strength(room, trainer)
    identity = replace(identity, card=model_card(room, candidates, best.step))
    _point_best(room, served, identity, best, strength)
    return checks, strength


def _keep_trunk(room: Room, trainer: Trainer) -> None:
    """What the frozen layers put out for every row, where the plan keeps it."""
    place, depth = room.plan["trunk"], room.plan["frozen_layers"]
    # Ranks gather every layer together, so none may leave one out.
    if place == "no" or room.ranks.count > 1 or path_of(trainer.model) is ReadPath.PADDED:
        return
    file = None
    if place == "disk":
        # A scratch file: it can be made again from the rows at any time.
        folder = room.out / "trunk"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        file = folder / "outputs"
    rows = [*room.examples, *(row for batch in replay_batches(room) for row in batch)]
    trainer.trunk = Trunk(trainer.model, depth, file)
    tick = room.watcher.track(f"{depth} frozen layers, once for {len(rows)} rows", len(rows))
    trainer.trunk.fill(rows, tick)


def _identity(room: Room) -> checkpoint.Identity:
    record = room.record
    return checkpoint.Identity(
        base_path=str(room.loaded.source.folder),
        targets=name_targets(room.recipe.adapt),
        fingerprints=record.fingerprints,
        former=record.former,
        made_by=record.made_by,
    )


def _served(room: Room) -> Loaded:
    """The model with the tokenizer that travels with the checkpoint: its system prompt inside."""
    tokenizer = load_tokenizer(room.loaded.source.folder)
    system = room.recipe.data.system or room.prepared.card.system
    return replace(room.loaded, tokenizer=tokenizer, renderer=Renderer(tokenizer, system))


def _checks_at_start(
    room: Room, trainer: Trainer, served: Loaded, identity: checkpoint.Identity
) -> list[Check]:
    kept = room.out / "checks.json"
    if kept.is_file():
        return [Check(**row) for row in read_json(kept)]
    card = room.prepared.card
    held_out = len(room.prepared.validation) + len(room.prepared.test)
    dropped = card.rows_dropped + len(room.too_long)
    checks = [
        check_template(room.prepared.train, room.loaded.renderer, served.renderer),
        check_rows(card, len(room.train), held_out, dropped),
        check_gradient(trainer, room.examples),
        check_resume(trainer, served, identity, room.examples),
    ]
    write_lines(room.out / "too_long.jsonl", room.too_long)
    write_json(kept, checks)
    return checks


def _restore_weights(
    room: Room, trainer: Trainer, identity: checkpoint.Identity, best: Candidate
) -> None:
    if trainer.step != best.step:
        checkpoint.restore(checkpoint.step_folder(room.out, best.step), trainer, identity)
    trainer.settle()
    trainer.model.eval()


def _strength(room: Room, trainer: Trainer) -> float:
    wanted = room.recipe.adapt.strength
    strength = (
        choose_strength(trainer, room.loaded, room.validation, room.watcher)
        if wanted == "auto"
        else float(wanted)
    )
    trainer.settle(strength)
    return strength


def _point_best(
    room: Room, served: Loaded, identity: checkpoint.Identity, best: Candidate, strength: float
) -> None:
    """`best` names the chosen checkpoint, at the chosen strength."""
    folder = checkpoint.step_folder(room.out, best.step)
    if strength != 1.0:
        folder = folder.with_name(f"{folder.name}-strength-{strength:g}")
        checkpoint.save_model_only(folder, served, identity, best.step, strength, room.ranks)
    if room.ranks.is_first:
        point(room.out, "best", folder)
