"""A model as judge of pairs, and the controls that show whether it can be believed.

Every pair is shown in both orders; where the two disagree each side gets half. Beside the pairs
the judge sees controls that have a known answer: the same answer on both sides (must come out
even), a constant answer (must lose), and an answer said twice over (must not win for its length).
A judge that fails one is named for it. A judge is never the headline by itself: `compare` and the
reference answers are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from timechat.conversation import Message
from timechat.evals.statistics.chance import Floats
from timechat.evals.statistics.compare import compare
from timechat.records import Measure, Score

SCORER = "judge_both_orders/1"
CONSTANT = "I am happy to help. Please let me know what you need."
NUM_CONTROLS = 20
NUM_DRAWS = 400
INSTRUCTION = (
    "You compare two answers to the same question. Judge whether they are right and helpful; "
    "neither their order nor their length matters. Reply with exactly one of: A, B or TIE."
)
_VERDICT = re.compile(r"\b(A|B|TIE)\b")

Ask = Callable[[Sequence[Message]], str | None]
"""A judge: messages to its reply, or None where there was none."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One question with both answers and, where there is one, the reference."""

    item: str
    cluster: str
    question: str
    before: str
    after: str
    reference: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """One pair's share for the new answer (0, ½ or 1), from both orders; None: no verdict."""

    share: float | None
    consistent: bool
    firsts: int
    replies: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge found, and whether it can be believed.

    `measure` compares the new answers' share of wins with one half; `length_controlled` is the
    share at equal length with a bootstrapped interval; `consistency` the share of pairs judged
    alike in both orders; `firsts` the share of verdicts for whichever answer stood first;
    `unjudged` the pairs without a readable verdict, which count nowhere.
    """

    measure: Measure | None
    length_controlled: float
    length_ci95: tuple[float, float]
    length_effect: float
    consistency: float
    firsts: float
    same: float
    constant: float
    doubled: float
    unjudged: int
    faults: tuple[str, ...]

    @property
    def believable(self) -> bool:
        return not self.faults


def judge_pairs(
    pairs: Sequence[Pair], ask: Ask, progress: Callable[[int], None] = lambda _: None
) -> Judgement:
    """Show every pair in both orders, the controls too, and weigh the verdicts."""
    found: list[Judged] = []
    for pair in pairs:
        found.append(_both_orders(ask, pair, pair.before, pair.after))
        progress(1)
    controls = pairs[:NUM_CONTROLS]
    same = [_both_orders(ask, p, p.before, p.before) for p in controls]
    constant = [_both_orders(ask, p, p.reference or p.after, CONSTANT) for p in controls]
    doubled = [_both_orders(ask, p, p.after, f"{p.after} {p.after}") for p in controls if p.after]
    return _weigh(pairs, found, same, constant, doubled)


def parse_verdict(reply: str | None) -> str | None:
    """`A`, `B` or `TIE` where the reply says exactly one of them; else None."""
    said = set(_VERDICT.findall((reply or "").upper()))
    return said.pop() if len(said) == 1 else None


def control_length(
    shares: Floats, lengths: Floats, cluster: np.ndarray, seed: int = 0
) -> tuple[float, tuple[float, float], float]:
    """The share of wins at equal length, its 95 % interval, and the effect of length.

    logit P(win) = theta + beta tanh(d / sd(d)), d the new answer's extra words; the share is
    sigma(theta). The whole fit is bootstrapped over clusters: the spread of fitted probabilities
    alone, as some leaderboards give it, is far too narrow.
    """
    spread = float(lengths.std())
    longer = np.tanh(lengths / spread) if spread > 0 else np.zeros_like(lengths)
    theta, beta = _fit(shares, longer)
    random = np.random.default_rng(seed)
    members = [np.flatnonzero(cluster == c) for c in range(int(cluster.max()) + 1)]
    drawn: list[float] = []
    for _ in range(NUM_DRAWS):
        picked = random.integers(0, len(members), len(members))
        rows = np.concatenate([members[c] for c in picked])
        drawn.append(_share(_fit(shares[rows], longer[rows])[0]))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return _share(theta), (float(low), float(high)), beta


def _fit(shares: Floats, longer: Floats) -> tuple[float, float]:
    """The likeliest theta and beta, held a little towards zero so that a clean sweep has one."""

    def loss(at: Floats) -> tuple[float, Floats]:
        z = at[0] + at[1] * longer
        value = float((np.logaddexp(0, z) - shares * z).sum() + 0.05 * (at @ at))
        gap = 1 / (1 + np.exp(-z)) - shares
        return value, np.array([gap.sum(), (gap * longer).sum()]) + 0.1 * at

    found = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B")
    return float(found.x[0]), float(found.x[1])


def _share(theta: float) -> float:
    return 1 / (1 + math.exp(-theta))


def _both_orders(ask: Ask, pair: Pair, old: str, new: str) -> Judged:
    first = parse_verdict(ask(_show(pair, old, new)))
    second = parse_verdict(ask(_show(pair, new, old)))
    replies = (first is not None) + (second is not None)
    firsts = (first == "A") + (second == "A")
    if first is None or second is None:
        return Judged(None, False, firsts, replies)
    one = {"A": 0.0, "B": 1.0, "TIE": 0.5}[first]
    two = {"A": 1.0, "B": 0.0, "TIE": 0.5}[second]
    # Where the orders disagree nobody won.
    return Judged(one if one == two else 0.5, one == two, firsts, replies)


def _show(pair: Pair, first: str, second: str) -> list[Message]:
    reference = f"\n\nA right answer, for you alone:\n{pair.reference}" if pair.reference else ""
    text = f"Question:\n{pair.question}{reference}\n\nAnswer A:\n{first}\n\nAnswer B:\n{second}"
    return [Message("system", INSTRUCTION), Message("user", text)]


def _weigh(
    pairs: Sequence[Pair],
    found: Sequence[Judged],
    same: Sequence[Judged],
    constant: Sequence[Judged],
    doubled: Sequence[Judged],
) -> Judgement:
    kept = [(p, j.share, j) for p, j in zip(pairs, found, strict=True) if j.share is not None]
    replies = sum(j.replies for j in (*found, *same))
    firsts = sum(j.firsts for j in (*found, *same)) / replies if replies else 0.5
    consistency = sum(j.consistent for _, _, j in kept) / len(kept) if kept else 0.0
    measure, controlled = None, (0.5, (0.0, 1.0), 0.0)
    if kept:
        after = [Score(p.item, p.cluster, share, SCORER) for p, share, _ in kept]
        half = [Score(p.item, p.cluster, 0.5, SCORER) for p, _, _ in kept]
        measure = compare("judge's share of wins", half, after, kind="gain", unit="share")
        shares = np.array([share for _, share, _ in kept])
        extra = np.array([float(len(p.after.split()) - len(p.before.split())) for p, _, _ in kept])
        index: dict[str, int] = {}
        cluster = np.array([index.setdefault(p.cluster, len(index)) for p, _, _ in kept])
        controlled = control_length(shares, extra, cluster)
    rates = (_rate(same), _rate(constant), _rate(doubled))
    faults = _name_faults(consistency, firsts, rates, len(kept), len(pairs))
    return Judgement(
        measure, *controlled, consistency, firsts, *rates, len(pairs) - len(kept), faults
    )


def _name_faults(
    consistency: float, firsts: float, rates: tuple[float, float, float], kept: int, asked: int
) -> tuple[str, ...]:
    same, constant, doubled = rates
    faults: list[str] = []
    if kept < 0.9 * asked:
        faults.append(f"no readable verdict for {asked - kept} of {asked} pairs")
    if abs(firsts - 0.5) > 0.25 and consistency < 0.6:
        place = "first" if firsts > 0.5 else "second"
        faults.append(f"prefers whichever answer stands {place} ({firsts:.0%} of verdicts A)")
    if abs(same - 0.5) > 0.1:
        faults.append(f"tells equal answers apart ({same:.0%} instead of 50 %)")
    if constant > 0.3:
        faults.append(f"lets a constant answer win {constant:.0%} of the time")
    if doubled > 0.6:
        faults.append(f"prefers longer answers (one said twice over wins {doubled:.0%})")
    return tuple(faults)


def _rate(judged: Sequence[Judged]) -> float:
    shares = [j.share for j in judged if j.share is not None]
    return sum(shares) / len(shares) if shares else 0.5
