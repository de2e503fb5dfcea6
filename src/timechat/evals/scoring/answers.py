"""Two models' answers to the same questions as texts: measures, labels, and what changed most.

The answer score and the likelihoods decide; what is here explains them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from timechat.conversation import Conversation
from timechat.evals.scoring.labels import label_scores, labels_of, worst_mixups
from timechat.evals.scoring.scorers import exact_match, token_f1
from timechat.evals.scoring.texts import (
    VERSIONS,
    Copies,
    bleu,
    chrf,
    count_words,
    distinct,
    format_check,
    guess_format,
    refuses,
    rouge_l,
)
from timechat.evals.statistics.compare import compare
from timechat.records import Measure, Sample, Score

NUM_SHOWN = 20

Scorer = Callable[[str, str], float]


def text_measures(
    questions: Sequence[Conversation],
    before: Sequence[str],
    after: Sequence[str],
    trained: Sequence[str] = (),
    wanted: str = "",
) -> list[Measure]:
    """Every text measure as a paired comparison; positive is better in each.

    `wanted` is a format as `texts.format_check` reads it; where it is empty and every reference
    is JSON, answers are expected to be JSON too.
    """
    wanted = wanted or guess_format([q.reference for q in questions])
    copies = Copies(trained)
    scorers: list[tuple[str, str, Scorer, bool]] = [
        ("exact match", "exact_match/1", exact_match, True),
        ("token F1", "token_f1/1", token_f1, True),
        ("ROUGE-L", VERSIONS["rouge_l"], rouge_l, True),
        ("BLEU", VERSIONS["bleu"], bleu, True),
        ("chrF", VERSIONS["chrf"], chrf, True),
        ("refusals", VERSIONS["refusal"], lambda answer, _: refuses(answer), False),
    ]
    if trained:
        copied: Scorer = lambda answer, _: copies.score(answer)  # noqa: E731
        scorers.append(("copied from training rows", VERSIONS["copied"], copied, False))
    if wanted:
        fits = format_check(wanted)
        checked: Scorer = lambda answer, _: fits(answer)  # noqa: E731
        scorers.append(("valid format", VERSIONS["format"], checked, True))
    return [
        compare(
            name,
            _score(questions, before, scorer, version),
            _score(questions, after, scorer, version),
            kind="gain",
            unit="share",
            higher_is_better=better,
        )
        for name, version, scorer, better in scorers
    ]


def describe(
    questions: Sequence[Conversation], before: Sequence[str], after: Sequence[str]
) -> dict[str, Any]:
    """What has no better or worse: length, variety, empty answers; and labels, where there are."""
    out: dict[str, Any] = {}
    for name, answers in (("before", before), ("after", after)):
        out[name] = {
            "mean_words": sum(map(count_words, answers)) / max(1, len(answers)),
            "distinct_2": distinct(answers),
            "empty": sum(not answer.strip() for answer in answers),
        }
    references = [q.reference for q in questions]
    if labels_of(references):
        for name, answers in (("before", before), ("after", after)):
            found = label_scores(answers, references)
            out[name]["labels"] = asdict(found) | {"mixups": worst_mixups(found.confusion)}
    return out


def gained_and_lost(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """The 20 questions that gained most and the 20 that lost most, none that did not change.

    Among equal gains the answers that differ most come first: those are worth a look.
    """

    def change(sample: Sample) -> float:
        return (sample.score_after or 0.0) - (sample.score_before or 0.0)

    ranked = sorted(samples, key=lambda s: (-change(s), likeness(s), s.question))
    best = [s for s in ranked if change(s) > 0][:NUM_SHOWN]
    ranked.sort(key=lambda s: (change(s), likeness(s), s.question))
    return best, [s for s in ranked if change(s) < 0][:NUM_SHOWN]


def likeness(sample: Sample) -> float:
    """How much of the old answer the new one keeps, by chrF: 0 to 1."""
    if sample.before == sample.after:
        return 1.0
    return chrf(sample.after, sample.before) if sample.before and sample.after else 0.0


def differ_most(samples: Sequence[Sample]) -> list[Sample]:
    """The 20 questions whose new answer is least like the old one, the least alike first."""
    apart = [(likeness(sample), sample) for sample in samples if sample.before != sample.after]
    apart.sort(key=lambda entry: (entry[0], entry[1].question))
    return [sample for _, sample in apart[:NUM_SHOWN]]


def find_regressions(groups: dict[str, dict[str, float]], least: float = 0.25) -> list[str]:
    """A sentence for every group that lost a quarter of its score, on two questions or more.

    Groups were not chosen beforehand, so these are hints to look, not claims.
    """
    worse = {
        name: group
        for name, group in groups.items()
        if group["difference"] <= -least and group["n"] >= 2
    }
    ranked = sorted(worse, key=lambda name: (worse[name]["difference"], name))
    return [
        f"group {name!r} got worse: {worse[name]['before']:.0%} to {worse[name]['after']:.0%} "
        f"({worse[name]['n']:.0f} questions)"
        for name in ranked[:5]
    ]


def find_losses(measures: Sequence[Measure]) -> list[str]:
    """A sentence for every text measure that is clearly worse: formats broken, rows copied."""
    words = {
        "valid format": "answers keep their format less often",
        "copied from training rows": "answers copy training rows word for word",
        "refusals": "questions are refused more often",
    }
    out: list[str] = []
    for measure in measures:
        if measure.name in words and measure.ci95[1] < 0:
            before, after = abs(measure.before), abs(measure.after)
            out.append(f"{words[measure.name]}: {before:.0%} to {after:.0%}")
    return out


def find_leaks(questions: Sequence[Conversation], trained: Sequence[Conversation]) -> list[str]:
    """A sentence where questions of the test also stand among the training rows."""
    known = {_plain(row.question[-1].content): row for row in trained if row.question}
    leaked = [q for q in questions if _plain(q.question[-1].content) in known]
    if not leaked:
        return []
    return [
        f"LEAK: {len(leaked)} of {len(questions)} questions also stand among the training rows "
        f"(first: {leaked[0].question[-1].content[:80]!r}); their answers were learned by heart"
    ]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _score(
    questions: Sequence[Conversation], answers: Sequence[str], scorer: Scorer, version: str
) -> list[Score]:
    return [
        Score(q.id, q.cluster, scorer(a, q.reference), version)
        for q, a in zip(questions, answers, strict=True)
    ]
