"""Every arm of a comparison, asked in its turn and set beside the base and the tuned model.

What an arm is, and when one is enough, is `arms`'; strengths are `strengths`'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from timechat.conversation import Conversation
from timechat.data.pack import encode
from timechat.errors import RecipeError
from timechat.evals.questions.suite import Task
from timechat.evals.statistics.compare import compare
from timechat.recipe import Evaluate
from timechat.records import Check
from timechat.stages.comparing.arms import (
    RETRIEVAL,
    STRENGTHS,
    Arm,
    Ask,
    answer_arm,
    few_shot,
    is_enough_untrained,
    leave_answers,
    tell_enough,
    weigh_arm,
    with_excerpts,
    with_prompt,
    without_answers,
)
from timechat.stages.comparing.documents import EmbedderName, build_index
from timechat.stages.comparing.hosted import Price
from timechat.stages.comparing.sides import Asker, Side
from timechat.stages.comparing.strengths import slide, tell_slider
from timechat.store.files import write_lines

MAX_NEW_TOKENS = 96


@dataclass(frozen=True, slots=True)
class Options:
    """What to compare with, beside the two models. `judge` and `hosted` are addresses, `retention`
    files of questions that must not be forgotten, `harness` tasks of lm-evaluation-harness."""

    arms: tuple[str, ...] = ()
    documents: Path | None = None
    hosted: str = ""
    judge: str = ""
    wanted_format: str = ""
    offline: bool = False
    prices: Mapping[str, Price] = field(default_factory=dict[str, Price])
    embedder: EmbedderName = "base"
    retention: tuple[Path, ...] = ()
    harness: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the run that is compared, where one run is: its checks and costs, how it was
    asked, its rows, the strength that its best checkpoint holds, and its own retention files."""

    checks: list[Check] = field(default_factory=list[Check])
    costs: dict[str, Any] = field(default_factory=dict[str, Any])
    max_new_tokens: int = MAX_NEW_TOKENS
    margin: float = Evaluate().retention_margin
    trained: tuple[Conversation, ...] = ()
    validation: tuple[Conversation, ...] = ()
    strength: float = 1.0
    retention: tuple[Path, ...] = ()


@dataclass(slots=True)
class Entered:
    """What the arms leave in a report: details, sentences to begin with, other sentences, and what
    belongs in the headline: that one of them is enough."""

    details: dict[str, Any] = field(default_factory=dict[str, Any])
    first: list[str] = field(default_factory=list[str])
    findings: list[str] = field(default_factory=list[str])
    closing: str = ""


@dataclass(frozen=True, slots=True)
class Contest:
    """The arms of one comparison of two `sides` over the questions that both answered."""

    asker: Asker
    task: Task
    sides: Sequence[Side]
    options: Options
    known: Known

    def hold(self) -> Entered:
        """Ask every arm that was asked for."""
        out = Entered()
        base, tuned = (side.shot.scores for side in self.sides)
        found = list(self._own_arms())
        if self.options.hosted:
            arm, findings = self._hosted_arm()
            found.append(arm)
            out.findings += findings
        for arm in found:
            self._leave(arm)
        if found:
            main = compare("answer score", base, tuned, kind="gain", unit="share")
            out.first = tell_enough(found, main)
            if is_enough_untrained(found):
                out.closing = out.first.pop(0)
            out.details["arms"] = [asdict(without_answers(arm)) for arm in found]
        if STRENGTHS in self.options.arms:
            out.details["slider"], finding = self._slide()
            out.findings.append(finding)
        return out

    def _own_arms(self) -> Iterator[Arm]:
        base, tuned = (side.shot.scores for side in self.sides)
        for name, ask in self._ways().items():
            side = self.sides[1 if name.startswith("tuned") else 0]
            assert side.loaded is not None
            assert side.cache is not None
            about = (self.task, ask, self.known.max_new_tokens, self.asker.watcher)
            answers, seconds, wait = answer_arm(name, side.loaded, side.cache, *about)
            yield weigh_arm(name, self.task, answers, base, tuned, seconds, wait)

    def _ways(self) -> dict[str, Ask]:
        """How each arm puts its questions."""
        ways: dict[str, Ask] = {}
        for name in self.options.arms:
            if name == "prompt":
                ways[name] = with_prompt
            elif name == "few-shot":
                if not self.known.trained:
                    raise RecipeError("the arm 'few-shot' takes its examples from a run: name RUN")
                ways[name] = lambda question: few_shot(question, self.known.trained)
        wanted = [name for name in self.options.arms if name in RETRIEVAL]
        if wanted:
            base = self.sides[0].loaded
            assert self.options.documents is not None
            assert base is not None
            index = build_index(
                self.options.documents, base, self.options.embedder, self.asker.watcher
            )
            ways |= {name: with_excerpts(index, RETRIEVAL[name]) for name in wanted}
        return ways

    def _hosted_arm(self) -> tuple[Arm, list[str]]:
        side = self.asker.ask_hosted(self.options.hosted, "hosted")
        side.keep(self.asker.task, self.task)
        base, tuned = (side.shot.scores for side in self.sides)
        name, seconds = f"hosted {side.cost['model_asked']}", side.cost["seconds_per_answer"]
        about = (side.shot.answers, base, tuned, seconds, side.cost, side.missing)
        return weigh_arm(name, self.task, *about), side.findings

    def _leave(self, arm: Arm) -> None:
        file = self.asker.out / "evals" / "arms" / f"{arm.name.replace('/', '-')}.jsonl"
        write_lines(file, leave_answers(arm, self.task))
        measure = arm.against_tuned
        self.asker.watcher.say(
            f"{arm.name}: {measure.after:.1%}, {100 * measure.difference:+.1f} points against "
            f"the tuned model [{100 * measure.ci95[0]:+.1f}, {100 * measure.ci95[1]:+.1f}]"
        )

    def _slide(self) -> tuple[dict[str, Any], str]:
        base, tuned = (side.loaded for side in self.sides)
        assert base is not None
        assert tuned is not None
        if self.known.strength == 0:
            raise RecipeError(
                "this run keeps nothing of what it learned (strength 0): nothing to slide"
            )
        rows = [encode(row, self.asker.renderer) for row in self.known.validation]
        settings = slide(
            base,
            tuned,
            rows,
            self.task,
            self.asker.general,
            self.known.max_new_tokens,
            self.known.margin,
            self.asker.watcher,
            self.known.strength,
        )
        return tell_slider(settings, self.known.strength)
