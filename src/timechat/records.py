"""What the floors tell each other: plain frozen records, each with a JSON form.

A record lives here only when more than one floor needs it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["improved", "not_improved", "inconclusive"]
Kept = Literal["kept", "lost", "undecided"]


@dataclass(frozen=True, slots=True)
class Touched:
    """One row that a step dropped, edited or shortened; a line of `dropped.jsonl`."""

    source: str
    line: int
    action: Literal["dropped", "edited", "shortened"]
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class DataCard:
    """What came in, what was kept, and why the rest was not; the content of `card.json`."""

    rows_in: int
    rows_kept: int
    rows_dropped: int
    reasons: dict[str, int]
    edited: dict[str, int]
    splits: dict[str, int]
    groups: dict[str, int]
    overlap: dict[str, int]
    sources: dict[str, dict[str, Any]]
    digest: str
    seed: int
    system: str = ""
    # What was only reported, with the first places; lengths in words; rows of each language.
    found: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    words: dict[str, int] = field(default_factory=dict[str, int])
    languages: dict[str, int] = field(default_factory=dict[str, int])
    near: dict[str, int] = field(default_factory=dict[str, int])
    # Evaluation rows whose answer a training row has too: counted, never refused.
    shared_answers: dict[str, int] = field(default_factory=dict[str, int])
    general_overlap: int = 0
    bias: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    @property
    def closes(self) -> bool:
        """Whether rows in = rows kept (over all splits) + rows dropped."""
        return self.rows_in == sum(self.splits.values()) + self.rows_dropped


@dataclass(frozen=True, slots=True)
class Derived:
    """A number that the plan worked out, with the rule it followed."""

    value: Any
    rule: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The resolved recipe with its cost; the content of `plan.json`."""

    fits: bool
    numbers: dict[str, Derived]
    machine: dict[str, Any]
    refusal: str = ""

    def __getitem__(self, name: str) -> Any:
        return self.numbers[name].value


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimizer step. `loss` is in nats per target token, `tokens` are real tokens, `accuracy`
    is the share of target tokens that were the likeliest before the step."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    target_tokens: int
    elapsed_s: float
    replay_loss: float | None = None
    peak_bytes: int | None = None
    accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A checkpoint as its manifest tells it."""

    path: str
    step: int
    kind: str
    fingerprints: dict[str, str]
    validation_loss: float | None = None
    strength: float = 1.0


@dataclass(frozen=True, slots=True)
class Score:
    """One answer's score under one scorer."""

    item: str
    cluster: str
    value: float
    scorer: str


@dataclass(frozen=True, slots=True)
class Measure:
    """A paired comparison, signed so that a positive difference is better.

    Every figure is a mean of cluster means; `ci95` is a two-sided interval of the difference.
    `p_adjusted` is Holm's, for the few measures that decide.
    """

    name: str
    before: float
    after: float
    difference: float
    ci95: tuple[float, float]
    n: int
    clusters: int
    verdict: str
    unit: str = ""
    p_value: float | None = None
    note: str = ""
    p_adjusted: float | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One of the six promises, with its figure."""

    name: str
    passed: bool
    figure: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One question with both answers."""

    question: str
    before: str
    after: str
    reference: str
    group: str = ""
    score_before: float | None = None
    score_after: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """The proof; the content of `report.json`."""

    verdict: Verdict
    headline: str
    checks: tuple[Check, ...]
    task: Measure
    retention: Measure
    measures: tuple[Measure, ...]
    samples: tuple[Sample, ...]
    groups: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    run: dict[str, Any] = field(default_factory=dict[str, Any])
    # What the figures mean beside the verdict, in plain sentences; and everything more that was
    # measured: labels, answers as texts, arms, judge, strengths, overfitting, hashes.
    findings: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict[str, Any])
    best: tuple[Sample, ...] = ()
    worst: tuple[Sample, ...] = ()
    # The questions whose new answer is least like the old one, whatever the scores say.
    changed: tuple[Sample, ...] = ()
