"""The loop with its consumers: log, validate, save, watch the health, stop.

Everything that decides how it goes on travels in the checkpoint, so that a run that was killed,
stopped or moved ends in the same bytes as one that never was. `training` does the steps and writes
the files; `keep` says which checkpoints stay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from timechat.data.pack import Batch
from timechat.errors import StoppedError, TrainingError
from timechat.manifest import checkpoints, newest, read_manifest, step_of, verify
from timechat.model.load import Loaded
from timechat.model.machine import peak_memory
from timechat.records import StepRecord
from timechat.stages.runs.keep import check_space, checkpoint_bytes, newest_planned, point, retain
from timechat.stages.training.batches import plan_steps
from timechat.stages.training.card import model_card
from timechat.stages.training.context import Context
from timechat.stages.training.health import EXPLODED, LOWER, Health
from timechat.stages.training.select import Candidate, choose_checkpoint
from timechat.stages.training.validate import has_collapsed, validate
from timechat.store.files import append_line, read_lines, write_lines
from timechat.store.folders import remove_folder
from timechat.training import checkpoint
from timechat.training.loop import fit
from timechat.training.saver import Saver
from timechat.training.trainer import NotFiniteError, StepInterruptedError, Trainer

LOGS = ("metrics.jsonl", "samples.jsonl")
OFFENDING = "offending.jsonl"


class Learner:
    """One run's training from wherever it stands to its end."""

    def __init__(
        self, context: Context, trainer: Trainer, served: Loaded, identity: checkpoint.Identity
    ) -> None:
        self.context, self.trainer, self.served, self.identity = context, trainer, served, identity
        self.plan, self.out, self.say = context.plan, context.out, context.watcher.say
        self.steps: list[Callable[[], tuple[Batch, ...]]] = plan_steps(context)
        self.candidates: list[Candidate] = []
        self.health = Health()
        self.elapsed_s = 0.0
        self.saver = Saver()
        # The checkpoint that holds the present state, and its place in the line of checkpoints.
        self.saved = -1
        self.parent: dict[str, Any] | None = None

    def run(self) -> list[Candidate]:
        """Train to the end; returns the validations whose checkpoints are kept.

        Raises StoppedError, with everything saved, once the context is asked to stop.
        """
        ranks = self.context.ranks
        last = ranks.tell(newest(self.out, self.say) if ranks.is_first else None)
        if last is not None:
            self._restore(last)
            self.say(f"continuing from step {self.trainer.step} of {self.plan['steps']} ({last})")
        self._cut_logs()
        try:
            with self.context.stop.patiently():
                self._go()
        finally:
            self.saver.wait()
        ranks.wait()
        kept = {step_of(folder) for folder in checkpoints(self.out)}
        return [c for c in self.candidates if c.step in kept and c.step > 0]

    def _go(self) -> None:
        stop, ranks = self.context.stop, self.context.ranks
        try:
            self._look()
            while not self._is_over():
                self.saver.check()
                self._step()
                # The first rank is the one that is asked, and all leave after the same step.
                if ranks.tell(stop.signum):
                    break
                self._look()
        except (StepInterruptedError, StoppedError):
            pass  # between two micro-batches, or within a validation: both begin again from here
        if signum := ranks.tell(stop.signum):
            stop.ask(signum)
            self._leave()

    def _step(self) -> None:
        try:
            record = next(iter(fit(self.trainer, self.steps, self.context.stop.is_asked)))
        except NotFiniteError as error:
            self._not_finite(error)
        else:
            self._log(record)

    def _is_over(self) -> bool:
        patience = self.context.recipe.train.patience
        if self.trainer.step >= self.plan["steps"]:
            return True
        if self.trainer.begun.batches or not has_collapsed(self.candidates, patience):
            return False
        self.say(
            f"stopping at step {self.trainer.step}: validation has been clearly worse than its "
            f"best for {patience} validations in a row"
        )
        return True

    def _log(self, record: StepRecord) -> None:
        self.elapsed_s += record.elapsed_s
        line = {**asdict(record), "elapsed_s": round(self.elapsed_s, 4)}
        append_line(self.out / "metrics.jsonl", {**line, "peak_bytes": peak_memory()})
        self.context.watcher.stepped(record, self.plan["steps"])
        if spike := self.health.watch(record.step, record.loss):
            self.say(spike)
            self.context.note("spike", step=record.step, detail=spike)
        if self.health.has_exploded:
            self._exploded(record)

    def _look(self) -> None:
        """Validate and save where the plan says so, once."""
        step = self.trainer.step
        if self.trainer.begun.batches:
            return
        is_last = step == self.plan["steps"]
        is_due = is_last or step % self.plan["validate_every"] == 0
        if is_due and not (self.candidates and self.candidates[-1].step == step):
            self.candidates.append(validate(self.context, self.trainer, self.served))
        if (is_due or step % self.plan["checkpoint_every"] == 0) and self.saved != step:
            self.saver.wait()
            self.saver.finish_later(self._begin_save(is_planned=True))

    def _leave(self) -> None:
        """Save what is not saved yet, and end as asked."""
        self.saver.wait()
        step, stop = self.trainer.step, self.context.stop
        if self.saved != step or self.trainer.begun.batches:
            self._begin_save(is_planned=False)()
        self.context.note("stopped", step=step, signal=stop.signum)
        stop.check(
            f"stopped after step {step} of {self.plan['steps']}, and saved; "
            f"`timechat resume {self.out}` goes on from there"
        )

    def _begin_save(self, is_planned: bool) -> Callable[[], None]:
        """Copy the present state; the result makes it a checkpoint and lets old ones go."""
        step = self.trainer.step
        folder = checkpoint.step_folder(self.out, step)
        need = checkpoint_bytes(self.out) or int(self.plan["checkpoint_bytes"])
        if self.context.ranks.is_first:
            check_space(self.out, need, f"saving step {step}")
        begun = self.trainer.begun.batches
        rows = min(step * self.plan["batch_rows"], step * len(self.context.train))
        about = {
            "planned": is_planned and not begun,
            "cursor": {
                "step": step,
                "micro_batches": begun,
                "rows_seen": rows,
                "epoch": round(rows / len(self.context.train), 4),
            },
            "parent": self.parent,
        }
        notes = {
            "candidates": [asdict(c) for c in self.candidates],
            "elapsed_s": self.elapsed_s,
            "health": asdict(self.health),
            "validation_loss": self.candidates[-1].loss if self.candidates else None,
        }
        identity = replace(self.identity, card=model_card(self.context, self.candidates, step))
        finish = checkpoint.begin_save(folder, self.trainer, self.served, identity, notes, about)
        best = self._best()
        self.saved = step
        if not self.context.ranks.is_first:
            return lambda: None

        def complete() -> None:
            finish()
            verify(folder)
            if best is not None and checkpoint.step_folder(self.out, best).is_dir():
                point(self.out, "best", checkpoint.step_folder(self.out, best))
            retain(self.out, [] if best is None else [best])
            self.parent = checkpoint.parent_of(folder)

        return complete

    def _best(self) -> int | None:
        trained = [c for c in self.candidates if c.step > 0]
        return choose_checkpoint(trained).step if trained else None

    def _restore(self, folder: Path) -> None:
        notes = checkpoint.restore(folder, self.trainer, self.identity)
        self.candidates = [Candidate(**row) for row in notes["candidates"]]
        self.health = Health(**notes["health"])
        self.elapsed_s = float(notes["elapsed_s"])
        manifest = read_manifest(folder)
        self.saved = self.trainer.step if manifest.get("planned") else -1
        self.parent = checkpoint.parent_of(folder)

    def _not_finite(self, error: NotFiniteError) -> None:
        """Leave the step out; or go back and learn slower; or give up, naming the rows."""
        step = self.trainer.step + 1
        self.health.skip(step, error.loss, error.norm, error.rows)
        append_line(
            self.out / "metrics.jsonl",
            {"step": step, "skipped": f"loss {error.loss}, gradient norm {error.norm}"},
        )
        self.context.note("not_finite", step=step, detail=str(error))
        has_learnt = bool(self.trainer.optimizer.state)
        if self.health.may_skip and (has_learnt or step < self.plan["steps"]):
            self.say(
                f"step {step} is left out: loss {error.loss}, gradient norm {error.norm}; rows "
                f"{', '.join(error.rows[:4])}"
            )
            self.trainer.skip()
        elif self.health.may_roll_back:
            self._roll_back()
        else:
            self._give_up()

    def _roll_back(self) -> None:
        self.saver.wait()
        rollbacks, scale = self.health.rollbacks + 1, self.trainer.rate_scale * LOWER
        first = int(self.health.skipped[0]["step"])
        ranks = self.context.ranks
        folder = ranks.tell(newest_planned(self.out, before=first))
        if folder is None:
            self._give_up()
            return
        self._restore(folder)
        ranks.wait()
        # Where no checkpoint before them is left, the first of them are not gone through again.
        stay = [bad for bad in self.health.skipped if bad["step"] >= first]
        self.health = replace(self.health, skipped=stay, rollbacks=rollbacks)
        self.trainer.rate_scale = scale
        newer = [p for p in checkpoints(self.out) if step_of(p) > self.trainer.step]
        for folder in newer if ranks.is_first else []:
            remove_folder(folder)
        self._cut_logs()
        self.say(
            f"too many steps were not finite: back to step {self.trainer.step}, with {scale:g} of "
            "the learning rate"
        )
        self.context.note("rolled_back", step=self.trainer.step, rate_scale=scale)
        self._begin_save(is_planned=True)()

    def _give_up(self) -> None:
        """End the run, with the rows of the steps that failed written out."""
        self.saver.wait()
        guilty = {row: bad for bad in self.health.skipped for row in bad["rows"]}
        lines = [
            {"step": guilty[row.id]["step"], "loss": guilty[row.id]["loss"], **row.to_dict()}
            for row in self.context.train
            if row.id in guilty
        ]
        write_lines(self.out / OFFENDING, lines)
        self.context.note("failed", step=self.trainer.step)
        steps = ", ".join(str(bad["step"]) for bad in self.health.skipped)
        raise TrainingError(
            f"training cannot go on: steps {steps} had no finite loss and gradient, after "
            f"{self.health.rollbacks} roll-backs to a lower learning rate. Their {len(lines)} rows "
            f"are in {self.out / OFFENDING}: look at them, or lower train.learning_rate"
        )

    def _exploded(self, record: StepRecord) -> None:
        """End the run: what the model knew is gone, and more steps only cost time."""
        self.context.note("failed", step=record.step)
        raise TrainingError(
            f"the loss exploded: {self.health.first:.2f} nats a token at the first step, "
            f"{record.loss:.2f} at step {record.step} and far above for {EXPLODED} steps. The "
            f"learning rate of {self.plan['learning_rate']:g} is too high for this model: lower "
            "train.learning_rate, or leave it to the plan (auto)"
        )

    def _cut_logs(self) -> None:
        """Take back the lines of steps that will be done again."""
        step = self.trainer.step if self.candidates else -1
        for name in LOGS:
            path = self.out / name
            if path.is_file():
                write_lines(path, [row for row in read_lines(path) if row["step"] <= step])
