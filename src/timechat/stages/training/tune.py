"""Tuning: make the model ready to learn, prove the loop, train, choose a checkpoint and a strength.

Several ranks do all of this together. What is asked before and after is `train`'s business.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

from timechat.model.load import Loaded, load_tokenizer
from timechat.model.method import begin
from timechat.model.paths import Path as ReadPath
from timechat.model.paths import path_of
from timechat.model.recompute import recompute_layers
from timechat.model.render import Renderer
from timechat.recipe import Lora
from timechat.records import Check
from timechat.stages.evaluating.checks import (
    check_gradient,
    check_resume,
    check_rows,
    check_template,
)
from timechat.stages.runs.keep import point
from timechat.stages.training.batches import replay_batches
from timechat.stages.training.card import model_card
from timechat.stages.training.context import Context
from timechat.stages.training.learner import Learner
from timechat.stages.training.select import Candidate, choose_checkpoint, choose_strength
from timechat.store.files import read_json, write_json, write_lines
from timechat.training import checkpoint
from timechat.training.trainer import Trainer
from timechat.training.trunk import Trunk


def tune(context: Context) -> tuple[list[Check], float]:
    """Train, choose a checkpoint and a strength, and leave the model at both.

    Returns the checks that could be made on the way, and the strength.
    """
    loaded, plan, recipe = context.loaded, context.plan, context.recipe
    alpha = plan["alpha"] if isinstance(recipe.adapt, Lora) else 0.0
    replay_batches(context)  # the base's own answers are asked while it is the base
    path_of(loaded.model)  # tried while the weights are whole, on every rank
    change = begin(loaded.model, recipe.adapt, alpha, recipe.train.seed, context.ranks)
    if plan["recompute"]:
        recompute_layers(loaded.model)
    trainer = Trainer(loaded.model, context.settings(), change)
    identity = context.identity()
    _keep_trunk(context, trainer)
    served = _served(context)
    checks = _checks_at_start(context, trainer, served, identity)
    candidates = Learner(context, trainer, served, identity).run()
    best = choose_checkpoint(candidates)
    _restore_weights(context, trainer, identity, best)
    trainer.trunk = None
    shutil.rmtree(context.out / "trunk", ignore_errors=True)
    strength = _strength(context, trainer)
    identity = replace(identity, card=model_card(context, candidates, best.step))
    _point_best(context, served, identity, best, strength)
    return checks, strength


def _keep_trunk(context: Context, trainer: Trainer) -> None:
    """What the frozen layers put out for every row, where the plan keeps it."""
    place, depth = context.plan["trunk"], context.plan["frozen_layers"]
    # Ranks gather every layer together, so none may leave one out.
    if place == "no" or context.ranks.count > 1 or path_of(trainer.model) is ReadPath.PADDED:
        return
    file = None
    if place == "disk":
        # A scratch file: it can be made again from the rows at any time.
        folder = context.out / "trunk"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        file = folder / "outputs"
    rows = [*context.examples, *(row for batch in replay_batches(context) for row in batch)]
    trainer.trunk = Trunk(trainer.model, depth, file)
    tick = context.watcher.track(f"{depth} frozen layers, once for {len(rows)} rows", len(rows))
    trainer.trunk.fill(rows, tick)


def _served(context: Context) -> Loaded:
    """The model with the tokenizer that travels with the checkpoint: its system prompt inside."""
    tokenizer = load_tokenizer(context.loaded.source.folder)
    system = context.recipe.data.system or context.prepared.card.system
    return replace(context.loaded, tokenizer=tokenizer, renderer=Renderer(tokenizer, system))


def _checks_at_start(
    context: Context, trainer: Trainer, served: Loaded, identity: checkpoint.Identity
) -> list[Check]:
    kept = context.out / "checks.json"
    if kept.is_file():
        return [Check(**row) for row in read_json(kept)]
    card = context.prepared.card
    held_out = len(context.prepared.validation) + len(context.prepared.test)
    dropped = card.rows_dropped + len(context.too_long)
    checks = [
        check_template(context.prepared.train, context.loaded.renderer, served.renderer),
        check_rows(card, len(context.train), held_out, dropped),
        check_gradient(trainer, context.examples, context.plan["micro_rows"]),
        check_resume(trainer, served, identity, context.examples),
    ]
    write_lines(context.out / "too_long.jsonl", context.too_long)
    write_json(kept, checks)
    return checks


def _restore_weights(
    context: Context, trainer: Trainer, identity: checkpoint.Identity, best: Candidate
) -> None:
    if trainer.step != best.step:
        checkpoint.restore(checkpoint.step_folder(context.out, best.step), trainer, identity)
    trainer.settle()
    trainer.model.eval()


def _strength(context: Context, trainer: Trainer) -> float:
    wanted = context.recipe.adapt.strength
    strength = (
        choose_strength(trainer, context.loaded, context.validation, context.watcher)
        if wanted == "auto"
        else float(wanted)
    )
    trainer.settle(strength)
    return strength


def _point_best(
    context: Context,
    served: Loaded,
    identity: checkpoint.Identity,
    best: Candidate,
    strength: float,
) -> None:
    """`best` names the chosen checkpoint, at the chosen strength."""
    folder = checkpoint.step_folder(context.out, best.step)
    if strength != 1.0:
        folder = folder.with_name(f"{folder.name}-strength-{strength:g}")
        checkpoint.save_model_only(folder, served, identity, best.step, strength, context.ranks)
    if context.ranks.is_first:
        point(context.out, "best", folder)
