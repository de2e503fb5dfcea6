"""`compare` on the command line: a run's before and after again, any two models, and the arms."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from timechat.conversation import Conversation
from timechat.data.sources import read_questions
from timechat.endpoint import Endpoint
from timechat.errors import DataError, RecipeError
from timechat.evals.compare import compare
from timechat.evals.judge import Pair, judge_pairs
from timechat.evals.scorers import answer_score, scorer_name
from timechat.evals.suite import General, Task, general_suite, task_suite
from timechat.model.load import Loaded, load, load_tokenizer, resolve
from timechat.model.render import Renderer
from timechat.recipe import Evaluate, load_recipe
from timechat.records import Check, Report, Score
from timechat.stages import snapshot
from timechat.stages.arms import (
    Arm,
    answer_arm,
    ask_endpoint,
    build_library,
    few_shot,
    leave_answers,
    tell_cost,
    tell_enough,
    weigh_arm,
    with_prompt,
    without_answers,
)
from timechat.stages.compare import Extra, build_report, say_power
from timechat.stages.prepare import load_prepared, rows_of_run
from timechat.stages.remember import Memory
from timechat.stages.watch import Watcher
from timechat.store import read_json, write_lines

MAX_NEW_TOKENS = 96
MAX_QUESTIONS = 400


@dataclass(frozen=True, slots=True)
class Options:
    """What to compare with, beside the two models. `judge` and `hosted` are addresses."""

    arms: tuple[str, ...] = ()
    documents: Path | None = None
    hosted: str = ""
    judge: str = ""
    wanted_format: str = ""
    offline: bool = False


@dataclass(frozen=True, slots=True)
class _Known:
    """The checks and costs of the run that is compared, where one run is."""

    checks: list[Check] = field(default_factory=list[Check])
    costs: dict[str, Any] = field(default_factory=dict[str, Any])
    max_new_tokens: int = MAX_NEW_TOKENS
    margin: float = Evaluate().retention_margin
    trained: tuple[Conversation, ...] = ()


def versus(
    models: Sequence[str],
    questions: Path | None,
    system: str,
    out: Path | None,
    watcher: Watcher,
    options: Options | None = None,
) -> tuple[Report, Path]:
    """Compare one run with its base, or model A with model B; returns the report and its folder.

    Two local models get the same token ids, so their tokenizers must be the same. An endpoint
    gives answers only: then nothing is said of likelihoods and retention.
    """
    options = options or Options()
    if len(models) not in (1, 2):
        raise RecipeError("compare takes RUN, or two models A B")
    run = Path(models[0].partition("@")[0])
    again = _Known()
    names = list(models)
    if len(models) == 1:
        again = _known(run)
        names = [load_recipe(run / "recipe.yaml").base, models[0]]
    rows = _questions(questions, run, system)
    place = _target(out, run if len(models) == 1 else None)
    return _Comparison(names, rows, again, place, watcher, options).finish(), place


def _is_address(name: str) -> bool:
    return name.startswith(("http://", "https://"))


class _Comparison:
    """One comparison with everything it needs, asked in order."""

    def __init__(
        self,
        names: list[str],
        rows: list[Conversation],
        known: _Known,
        out: Path,
        watcher: Watcher,
        options: Options,
    ) -> None:
        self.names, self.known, self.out = names, known, out
        self.watcher, self.options = watcher, options
        self.findings: list[str] = []
        self.details: dict[str, Any] = {}
        local = [name for name in names if not _is_address(name)]
        if options.arms and len(local) != 2:
            raise RecipeError("arms are made of two local models: a base and a tuned one")
        self.renderer = self._renderer(local)
        self.task = task_suite(rows, self.renderer, MAX_QUESTIONS)
        self.both_local = len(local) == 2

    def finish(self) -> Report:
        say_power(self.task, self.watcher)
        general = general_suite(self.renderer) if self.both_local else General((), (), ())
        sides = [
            self._side(name, label, general)
            for name, label in zip(self.names, ("before", "after"), strict=True)
        ]
        self._leave_out_unanswered(sides)
        arms = self._arms(sides)
        if arms:
            self.details["arms"] = [asdict(without_answers(arm)) for arm in arms]
        if self.options.judge:
            self._judge(sides)
        costs = self.known.costs or {"before": self.names[0], "after": self.names[1]}
        extra = Extra(
            tuple(self.findings), self.details, self.known.trained, self.options.wanted_format
        )
        report = build_report(
            self.out,
            self.task,
            sides[0].shot,
            sides[1].shot,
            self.known.margin,
            self.known.checks,
            costs,
            extra,
        )
        return report

    def _renderer(self, local: list[str]) -> Renderer:
        """The first local model's; two endpoints have no tokens, any tokenizer will do."""
        source = resolve(local[0] if local else "starter", self.watcher.say)
        return Renderer(load_tokenizer(source.folder))

    def _side(self, name: str, label: str, general: General) -> _Side:
        if _is_address(name):
            return self._hosted_side(name, label)
        self.watcher.say(f"loading {name}")
        loaded = load(resolve(name, self.watcher.say))
        _same_vocabulary(self.renderer, loaded)
        limit = self.known.max_new_tokens
        if not self.both_local:
            shot = snapshot.answers_only(loaded, self.task, limit, self.watcher, label)
        else:
            whole = loaded.source.adapter is None
            memory = Memory(loaded, self.watcher) if whole else None
            shot = snapshot.take(loaded, self.task, general, limit, self.watcher, label, memory)
            snapshot.write(shot, self.task, self.out / "evals" / label)
        return _Side(shot, loaded if self.options.arms else None)

    def _hosted_side(self, name: str, label: str) -> _Side:
        replies, cost = self._ask_hosted(name, label)
        self.details[label] = cost
        answers = [reply.text for reply in replies]
        missing = _missing(self.task, replies)
        shot = snapshot.Snapshot(answers, _scores(self.task, answers), [], [], [], [])
        return _Side(shot, None, missing)

    def _ask_hosted(self, address: str, label: str) -> tuple[list[Any], dict[str, Any]]:
        record = self.out / "evals" / label / "answers.jsonl"
        endpoint = Endpoint(address, record, offline=self.options.offline)
        try:
            replies, cost = ask_endpoint(
                endpoint, self.task, self.known.max_new_tokens, self.watcher
            )
        finally:
            endpoint.close()
        for fault, count in cost["faults"].items():
            self.findings.append(f"{address}: {count} questions not answered ({fault})")
        if "warning" in cost:
            self.findings.append(f"{address}: {cost['warning']}")
        if cost["unanswered"] == len(replies):
            fault = next(iter(cost["faults"]))
            raise DataError(f"{address} answered none of {len(replies)} questions: {fault}")
        return replies, cost

    def _leave_out_unanswered(self, sides: list[_Side]) -> None:
        """A question that one side could not be asked is no wrong answer: it counts nowhere."""
        missing = sides[0].missing | sides[1].missing
        if not missing:
            return
        kept = [i for i, q in enumerate(self.task.questions) if q.id not in missing]
        self.findings.append(
            f"{len(missing)} of {len(self.task.questions)} questions are left out, unanswered"
        )
        task = self.task
        self.task = Task(
            tuple(task.questions[i] for i in kept),
            tuple(task.prompts[i] for i in kept),
            tuple(task.examples[i] for i in kept),
        )
        for side in sides:
            side.shot = replace(
                side.shot,
                answers=[side.shot.answers[i] for i in kept],
                scores=[side.shot.scores[i] for i in kept],
            )

    def _arms(self, sides: list[_Side]) -> list[Arm]:
        """Every arm that was asked for, paired with both sides."""
        base, tuned = sides[0].shot.scores, sides[1].shot.scores
        limit = self.known.max_new_tokens
        found: list[Arm] = []
        library = None
        for name in self.options.arms:
            loaded = sides[1 if name.startswith("tuned") else 0].loaded
            assert loaded is not None
            if name == "prompt":
                ask = with_prompt
            elif name == "few-shot":
                if not self.known.trained:
                    raise RecipeError("the arm 'few-shot' takes its examples from a run: name RUN")
                ask = self._few_shot
            else:
                assert self.options.documents is not None
                first = sides[0].loaded
                assert first is not None
                library = library or build_library(self.options.documents, first, self.watcher)
                ask = library.with_excerpts
            answers, seconds = answer_arm(name, loaded, self.task, ask, limit, self.watcher)
            found.append(weigh_arm(name, self.task, answers, base, tuned, seconds))
        if self.options.hosted:
            replies, cost = self._ask_hosted(self.options.hosted, "hosted")
            missing = _missing(self.task, replies)
            seconds = sum(r.seconds for r in replies) / max(1, len(replies))
            texts = [reply.text for reply in replies]
            name = f"hosted {cost['model_asked']}"
            found.append(weigh_arm(name, self.task, texts, base, tuned, seconds, cost, missing))
        for arm in found:
            file = self.out / "evals" / "arms" / f"{arm.name.replace('/', '-')}.jsonl"
            write_lines(file, leave_answers(arm, self.task))
            measure = arm.against_tuned
            self.watcher.say(
                f"{arm.name}: {measure.after:.1%}, {100 * measure.difference:+.1f} points against "
                f"the tuned model [{100 * measure.ci95[0]:+.1f}, {100 * measure.ci95[1]:+.1f}]"
            )
        if found:
            main = compare("answer score", base, tuned, kind="gain", unit="share")
            self.findings = [*tell_enough(found, main), *self.findings]
        return found

    def _few_shot(self, question: Conversation) -> list[Any]:
        return few_shot(question, self.known.trained)

    def _judge(self, sides: list[_Side]) -> None:
        """A judge's view beside the measures, with its controls; never the headline."""
        endpoint = Endpoint(
            self.options.judge,
            self.out / "evals" / "judge.jsonl",
            offline=self.options.offline,
        )
        pairs = [
            Pair(q.id, q.cluster, q.question[-1].content, a, b, q.reference)
            for q, a, b in zip(
                self.task.questions, sides[0].shot.answers, sides[1].shot.answers, strict=True
            )
        ]
        replies: list[Any] = []

        def ask(messages: Sequence[Any]) -> str | None:
            replies.append(endpoint.ask(messages, 16))
            return None if replies[-1].fault else replies[-1].text

        tick = self.watcher.track(f"judge {endpoint.model}: {len(pairs)} pairs", len(pairs))
        try:
            found = judge_pairs(pairs, ask, tick)
        finally:
            endpoint.close()
        cost = tell_cost(endpoint, replies)
        self.details["judge"] = {**asdict(found), "believable": found.believable, "cost": cost}
        if found.measure is not None:
            low, high = found.length_ci95
            self.findings.append(
                f"judge {endpoint.model}: the new answers win {found.measure.after:.0%}, "
                f"{found.length_controlled:.0%} at equal length "
                f"[{100 * low:.0f}, {100 * high:.0f}]; "
                f"{found.consistency:.0%} judged alike in both orders"
            )
        for fault in found.faults:
            self.findings.append(f"judge {endpoint.model} is not to be believed: it {fault}")
        if "warning" in cost:
            self.findings.append(f"judge: {cost['warning']}")


@dataclass(slots=True)
class _Side:
    """One model's answers; the model itself where arms need it; questions that got no answer."""

    shot: snapshot.Snapshot
    loaded: Loaded | None
    missing: frozenset[str] = frozenset()


def _missing(task: Task, replies: Sequence[Any]) -> frozenset[str]:
    return frozenset(q.id for q, r in zip(task.questions, replies, strict=True) if r.fault)


def _scores(task: Task, answers: Sequence[str]) -> list[Score]:
    return [
        Score(q.id, q.cluster, answer_score(a, q), scorer_name(q))
        for q, a in zip(task.questions, answers, strict=True)
    ]


def _known(run: Path) -> _Known:
    """What a run's own report already holds and asking again does not change."""
    if not (run / "report.json").is_file():
        raise RecipeError(f"{run} is no finished run: give a run, or two models A B")
    report = read_json(run / "report.json")
    checks = [Check(**row) for row in report["checks"] if row["name"] != "retention"]
    plan = read_json(run / "plan.json")
    longest = plan["numbers"]["max_new_tokens"]["value"]
    margin = load_recipe(run / "recipe.yaml").evaluate.retention_margin
    trained = tuple(load_prepared(rows_of_run(run)).train)
    return _Known(checks, report["run"], longest, margin, trained)


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


def _same_vocabulary(renderer: Renderer, loaded: Loaded) -> None:
    if renderer.tokenizer.get_vocab() != loaded.tokenizer.get_vocab():
        raise RecipeError(
            f"{loaded.source.name} has another vocabulary than the first model: their likelihoods "
            "cannot be compared token by token"
        )
