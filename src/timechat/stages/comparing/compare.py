"""`compare` on the command line: a run's before and after again, any two models, and the arms.

The order of things is here; one side is asked in `sides`, the arms in `contest`, a judge in
`judging`, and two finished reports are `recorded`'s.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timechat.conversation import Conversation
from timechat.data.sources import read_questions
from timechat.endpoint import is_address
from timechat.errors import DataError, RecipeError
from timechat.evals.questions.own import own_choices
from timechat.evals.questions.suite import Decoding, General, general_suite, task_suite
from timechat.model.load import load_tokenizer, resolve
from timechat.model.render import Renderer
from timechat.recipe_file import load_recipe
from timechat.records import Check, Measure, Report
from timechat.stages.comparing.arms import STRENGTHS
from timechat.stages.comparing.contest import Contest, Known, Options
from timechat.stages.comparing.harness import ask_harness, check_tasks, weigh_harness
from timechat.stages.comparing.judging import judge_answers
from timechat.stages.comparing.picks import weigh_picks
from timechat.stages.comparing.recorded import (
    REPORT,
    compare_reports,
    is_report,
    refuse_other_questions,
)
from timechat.stages.comparing.sides import Asker, Side
from timechat.stages.evaluating import snapshot
from timechat.stages.evaluating.report import Extra, build_report, say_power
from timechat.stages.preparing.prepare import load_prepared, rows_of_run
from timechat.stages.watch import Watcher
from timechat.store.files import read_json

MAX_QUESTIONS = 400


def compare(
    models: Sequence[str],
    questions: Path | None,
    system: str,
    out: Path | None,
    watcher: Watcher,
    options: Options | None = None,
) -> tuple[Report, Path]:
    """Compare one run with its base, model A with model B, or two reports; returns the report and
    its folder.

    Two local models get the same token ids, so their tokenizers must be the same. An endpoint
    gives answers only: then nothing is said of likelihoods and retention.
    """
    options = options or Options()
    if len(models) not in (1, 2):
        raise RecipeError("compare takes RUN, or two models A B")
    if any(map(is_report, models)):
        return _reports(models, questions, out, watcher, options)
    run = Path(models[0].partition("@")[0])
    again = Known()
    names = list(models)
    if len(models) == 1:
        again = _known(models[0])
        names = [load_recipe(run / "recipe.yaml").base, models[0]]
    elif questions is None:
        _refuse_two_minds(models)
    rows = _questions(questions, run, system)
    place = _target(out, run if len(models) == 1 else None)
    return _Comparison(names, rows, again, place, watcher, options).finish(), place


class _Comparison:
    """One comparison with everything it needs, asked in order."""

    def __init__(
        self,
        names: list[str],
        rows: list[Conversation],
        known: Known,
        out: Path,
        watcher: Watcher,
        options: Options,
    ) -> None:
        self.names, self.known, self.out = names, known, out
        self.watcher, self.options = watcher, options
        self.findings: list[str] = []
        self.details: dict[str, Any] = {}
        local = [name for name in names if not is_address(name)]
        if options.arms and len(local) != 2:
            raise RecipeError("arms are made of two local models: a base and a tuned one")
        if STRENGTHS in options.arms and not known.validation:
            raise RecipeError("a strength is chosen on a run's validation rows: name RUN alone")
        if options.harness:
            if len(local) != 2:
                raise RecipeError("tasks of the harness are asked of two local models")
            check_tasks(options.harness)
        renderer = self._renderer(local)
        self.decoding = Decoding(known.max_new_tokens, renderer.template)
        self.task = task_suite(rows, renderer, MAX_QUESTIONS)
        self.asker = Asker(
            self.task,
            self._general(renderer) if len(local) == 2 else General((), (), ()),
            renderer,
            known.max_new_tokens,
            out,
            watcher,
            options.prices,
            options.offline,
        )

    def finish(self) -> Report:
        say_power(self.task, self.watcher)
        self.details["questions_sha256"] = self.task.digest
        sides: list[Side] = []
        for name, label in zip(self.names, ("before", "after"), strict=True):
            side = self.asker.ask(name, label)
            sides.append(side)
            self.findings += side.findings
            if side.cost:
                self.details[label] = side.cost
        self._leave_out_unanswered(sides)
        for side, label in zip(sides, ("before", "after"), strict=True):
            snapshot.write(side.shot, self.task, self.out / "evals" / label)
        entered = Contest(self.asker, self.task, sides, self.options, self.known).hold()
        self.details |= entered.details
        self.findings = [*entered.first, *self.findings, *entered.findings]
        if self.options.judge:
            self._judge(sides)
        measures = self._ask_harness(sides) if self.options.harness else ()
        picks, told = weigh_picks(self.out, self.task, sides[0].shot.answers, sides[1].shot.answers)
        if picks:
            self.details["people"] = picks
            self.findings += told
        extra = Extra(
            tuple(self.findings),
            self.details,
            self.known.trained,
            self.options.wanted_format,
            decoding=self.decoding,
            measures=measures,
            closing=entered.closing,
        )
        return build_report(
            self.out,
            self.task,
            sides[0].shot,
            sides[1].shot,
            self.known.margin,
            self.known.checks,
            self.known.costs or {"before": self.names[0], "after": self.names[1]},
            extra,
        )

    def _general(self, renderer: Renderer) -> General:
        files = (*self.known.retention, *self.options.retention)
        return general_suite(renderer, own=own_choices(files, renderer))

    def _renderer(self, local: list[str]) -> Renderer:
        """The first local model's; two endpoints have no tokens, any tokenizer will do."""
        source = resolve(local[0] if local else "starter", self.watcher.say)
        return Renderer(load_tokenizer(source.folder))

    def _leave_out_unanswered(self, sides: list[Side]) -> None:
        """A question that one side could not be asked is no wrong answer: it counts nowhere."""
        missing = sides[0].missing | sides[1].missing
        if not missing:
            return
        whole = self.task
        self.task = whole.only({q.id for q in whole.questions} - missing)
        self.findings.append(
            f"{len(missing)} of {len(whole.questions)} questions are left out, unanswered"
        )
        for side in sides:
            side.keep(whole, self.task)

    def _ask_harness(self, sides: list[Side]) -> tuple[Measure, ...]:
        asked = [
            ask_harness(side.loaded, self.options.harness, self.watcher, label)
            for side, label in zip(sides, ("before", "after"), strict=True)
            if side.loaded is not None
        ]
        measures, details, findings = weigh_harness(asked[0], asked[1], self.known.margin)
        self.details["harness"] = details
        self.findings += findings
        return tuple(measures)

    def _judge(self, sides: list[Side]) -> None:
        endpoint = self.asker.open(self.options.judge, Path("evals") / "judge.jsonl")
        before, after = (side.shot.answers for side in sides)
        try:
            self.details["judge"], findings = judge_answers(
                endpoint, self.task, before, after, self.watcher, self.options.prices
            )
        finally:
            endpoint.close()
        self.findings += findings


def _reports(
    models: Sequence[str],
    questions: Path | None,
    out: Path | None,
    watcher: Watcher,
    options: Options,
) -> tuple[Report, Path]:
    if len(models) != 2 or not all(map(is_report, models)):
        other = next((name for name in models if not is_report(name)), "nothing")
        raise RecipeError(
            f"{next(filter(is_report, models))} is a report, and {other} is none: compare takes "
            "two reports, or two models"
        )
    if questions is not None or options.arms or options.hosted or options.judge or options.harness:
        raise RecipeError("two reports are compared by what they recorded: nothing can be asked")
    place = _target(out, None)
    return compare_reports(Path(models[0]), Path(models[1]), place, watcher), place


def _refuse_two_minds(models: Sequence[str]) -> None:
    """Two runs that were asked different questions: whose would be asked now?"""
    runs = [Path(name.partition("@")[0]) for name in models]
    if all((run / REPORT).is_file() for run in runs):
        refuse_other_questions(runs[0], runs[1])


def _known(name: str) -> Known:
    """What a run's own report already holds and asking again does not change."""
    path, _, step = name.partition("@")
    run = Path(path)
    if not (run / REPORT).is_file():
        raise RecipeError(f"{run} is no finished run: give a run, or two models A B")
    report = read_json(run / REPORT)
    checks = [Check(**row) for row in report["checks"] if row["name"] != "retention"]
    plan = read_json(run / "plan.json")
    longest = plan["numbers"]["max_new_tokens"]["value"]
    evaluate = load_recipe(run / "recipe.yaml").evaluate
    files = tuple(Path(name) for name in evaluate.retention)
    prepared = load_prepared(rows_of_run(run))
    used = 1.0 if step else float(report["run"].get("strength", 1.0))
    return Known(
        checks,
        report["run"],
        longest,
        evaluate.retention_margin,
        prepared.train,
        prepared.validation,
        used,
        files,
    )


def _questions(questions: Path | None, run: Path, system: str) -> list[Conversation]:
    if questions is not None:
        return [row.with_system(system) for row in read_questions(questions)]
    if (run / "recipe.yaml").is_file():
        return list(load_prepared(rows_of_run(run)).test)
    raise DataError("no questions: name a file of conversation rows with --questions")


def _target(out: Path | None, run: Path | None) -> Path:
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        return out
    return run if run is not None else Path(tempfile.mkdtemp(prefix="timechat-compare-"))
