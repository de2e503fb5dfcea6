"""`train`: prepare if needed, ask before, plan, learn, choose, ask after, prove.

This is where the floors meet: the loop is `training.loop`'s, the questions `evals`', the files
`store`'s; the order of things and the choice of a checkpoint are decided here.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from timechat.errors import RunError, UserError
from timechat.evals.suite import General
from timechat.model.load import Loaded, load_tokenizer
from timechat.model.machine import peak_memory
from timechat.model.method import begin, name_method, name_targets
from timechat.model.paths import Path as ReadPath
from timechat.model.paths import path_of
from timechat.model.recompute import recompute_layers
from timechat.model.render import Renderer
from timechat.recipe import Lora, Recipe, load_recipe
from timechat.records import Check, Plan, Report
from timechat.stages import snapshot
from timechat.stages.allowance import afford, allowance, measure_pace
from timechat.stages.batches import replay_batches
from timechat.stages.card import finish_card, model_card
from timechat.stages.checks import (
    check_export,
    check_gradient,
    check_resume,
    check_rows,
    check_template,
)
from timechat.stages.compare import Extra, build_report
from timechat.stages.health import tell_skipped
from timechat.stages.keep import point
from timechat.stages.learn import Learner
from timechat.stages.outline import is_elsewhere, outline
from timechat.stages.record import claim, make_room
from timechat.stages.remember import Memory
from timechat.stages.room import Room, enter, prepared_rows
from timechat.stages.select import Candidate, choose_checkpoint, choose_strength
from timechat.stages.stop import Stop
from timechat.stages.watch import Watcher
from timechat.store import (
    owned,
    read_json,
    read_lines,
    remove_folder,
    sweep_run,
    write_json,
    write_lines,
)
from timechat.training import checkpoint
from timechat.training.loop import Settings, Trainer
from timechat.training.trunk import Trunk


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: its folder and its report."""

    folder: Path
    report: Report


def train(
    recipe: Recipe,
    out: Path,
    watcher: Watcher | None = None,
    stop: Stop | None = None,
    allow: Sequence[str] = (),
) -> Run:
    """Run the whole recipe, leaving everything in `out`; a run that exists there is continued.

    `allow` names what may have changed since then: `recipe`, `data`, `base`. Raises UserError for
    whatever the user can mend, before anything is trained, and StoppedError once `stop` is asked.
    """
    watcher = watcher or Watcher()
    make_room(out)
    with owned(out):
        sweep_run(out)
        is_new = claim(recipe, out, allow)
        try:
            room = enter(recipe, out, watcher, stop, allow)
        except UserError:
            if is_new:  # nothing that looks like a run is left of a recipe that cannot be one
                remove_folder(out)
            raise
        room.note("started", process=os.getpid(), machine=room.plan.machine["name"])
        return _run(room)


def _run(room: Room) -> Run:
    recipe, out, watcher = room.recipe, room.out, room.watcher
    num_general = len(room.general.choices)
    before = _before(room)
    checks, strength = _learn(room)
    after = snapshot.take(
        room.loaded, room.task, room.general, room.plan["max_new_tokens"], watcher, "after"
    )
    snapshot.write(after, room.task, out / "evals" / "after")
    checks.append(check_export(room.loaded, room.task.examples, out / "best"))
    if skipped := tell_skipped(out):
        watcher.say(skipped)
    report = build_report(
        out,
        room.task,
        before,
        after,
        recipe.evaluate.retention_margin,
        checks,
        _cost(room, strength),
        Extra(findings=(skipped,) if skipped else (), num_general=num_general),
    )
    finish_card(room, report)
    room.note("finished", verdict=report.verdict)
    return Run(out, report)


def resume(
    out: Path,
    watcher: Watcher | None = None,
    stop: Stop | None = None,
    allow: Sequence[str] = (),
) -> Run:
    """Go on with the run in `out` from its newest checkpoint."""
    if not (out / "recipe.yaml").is_file():
        raise RunError(f"no run at {out}: it has no recipe.yaml")
    return train(load_recipe(out / "recipe.yaml"), out, watcher, stop, allow)


def preview(recipe: Recipe, watcher: Watcher | None = None) -> Plan:
    """The plan of a run, without leaving anything behind, or downloading a model's weights."""
    watcher = watcher or Watcher()
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        if not is_elsewhere(recipe.base):
            return enter(recipe, out, watcher).plan
        plan = outline(recipe, prepared_rows(recipe, out, watcher), out)
    watcher.planned(plan)
    return plan


def _before(room: Room) -> snapshot.Snapshot:
    """The base's answers, found or asked; the room keeps the general questions of both sides."""
    folder = room.out / "evals" / "before"
    found = snapshot.read(folder, room.task)
    asked = snapshot.asked_in(found, room.general) if found else None
    if found is not None and asked is not None:
        room.general = asked
        return found
    memory = Memory(room.loaded, room.watcher)
    room.general = _affordable(room, memory)
    longest = room.plan["max_new_tokens"]
    found = snapshot.take(
        room.loaded, room.task, room.general, longest, room.watcher, "before", memory
    )
    snapshot.write(found, room.task, folder)
    return found


def _affordable(room: Room, memory: Memory) -> General:
    """What of the general suite may be asked after training, and before it where not known."""
    pace = measure_pace(room.loaded.model, room.general)
    seconds = allowance(room.plan["train_seconds"])
    once = afford(room.general, pace, 1, seconds)
    return once if memory.covers(once) else afford(room.general, pace, 2, seconds)


def _learn(room: Room) -> tuple[list[Check], float]:
    """Train, choose a checkpoint and a strength, and leave the model at both.

    Returns the checks that could be made on the way, and the strength.
    """
    loaded, plan, recipe = room.loaded, room.plan, room.recipe
    alpha = plan["alpha"] if isinstance(recipe.adapt, Lora) else 0.0
    change = begin(loaded.model, recipe.adapt, alpha, recipe.train.seed)
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
    if place == "no" or path_of(trainer.model) is ReadPath.PADDED:
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
        checkpoint.save_model_only(folder, served, identity, best.step, strength)
    point(room.out, "best", folder)


def _cost(room: Room, strength: float) -> dict[str, Any]:
    steps = [row for row in read_lines(room.out / "metrics.jsonl") if "loss" in row]
    seconds = steps[-1]["elapsed_s"] if steps else 0.0
    tokens = sum(row["tokens"] for row in steps)
    names = ("epochs", "learning_rate", "batch_rows", "trained_parameters")
    best = (room.out / "best").resolve().name
    return {
        "base": room.recipe.base,
        "method": name_method(room.recipe.adapt),
        "best": best,
        "strength": strength,
        "steps": len(steps),
        "train_seconds": round(seconds, 1),
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds) if seconds else 0,
        "peak_bytes": peak_memory(),
        **{name: room.plan[name] for name in names},
        "predicted_train_seconds": room.plan["train_seconds"],
        "questions_sha256": room.task.digest,
    }
