"""Scores of answers as texts: overlap with the reference, form, refusals, copying, variety.

Each scorer is one function with a version in `VERSIONS`. They tell what changed beside the answer
score, never instead of it: a text measure rewards the reference's own words. Scores per answer are
from 0 to 1 unless their name says otherwise; whole sets of labels are `labels`' work.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from timechat.errors import DataError
from timechat.evals.scoring.scorers import normalize

VERSIONS = {
    "rouge_l": "rouge_l/1",
    "bleu": "bleu/sacrebleu-1",
    "chrf": "chrf/sacrebleu-1",
    "refusal": "refusal/1",
    "length": "length_words/1",
    "copied": "verbatim_30/1",
    "distinct": "distinct_2/1",
    "format": "format/1",
}
COPY_WORDS = 30
"""An unbroken run of this many words that also stands in a training answer is copied, not said."""

_REFUSALS = re.compile(
    r"\b(?:i(?:'m| am)? (?:really )?(?:sorry|afraid|unable)|i (?:can(?:'t|not)|won't|will not|"
    r"do(?:n't| not) (?:know|have (?:any |that )?information))|as an ai\b|"
    r"i must (?:decline|refuse))",
    re.IGNORECASE,
)
_bleu = BLEU(effective_order=True)
_chrf = CHRF()


def rouge_l(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004), on the words of `normalize`."""
    got, wanted = normalize(answer), normalize(reference)
    if not got or not wanted:
        return float(got == wanted)
    row = [0] * (len(wanted) + 1)
    for word in got:
        diagonal = 0
        for j, other in enumerate(wanted, start=1):
            above = row[j]
            row[j] = diagonal + 1 if word == other else max(above, row[j - 1])
            diagonal = above
    return 2 * row[-1] / (len(got) + len(wanted))


def bleu(answer: str, reference: str) -> float:
    """sacrebleu's sentence BLEU with effective order, as a share."""
    return _bleu.sentence_score(answer, [reference]).score / 100


def chrf(answer: str, reference: str) -> float:
    """sacrebleu's sentence chrF2, as a share."""
    return _chrf.sentence_score(answer, [reference]).score / 100


def refuses(answer: str) -> float:
    """1 where the answer's first 200 characters refuse or say that it does not know."""
    return float(_REFUSALS.search(answer[:200].replace("’", "'")) is not None)


def count_words(answer: str) -> float:
    return float(len(answer.split()))


def distinct(answers: Iterable[str], size: int = 2) -> float:
    """The share of different n-grams among all n-grams of a set of answers (Li et al. 2016)."""
    seen: set[tuple[str, ...]] = set()
    total = 0
    for answer in answers:
        words = answer.split()
        grams = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else 0.0


class Copies:
    """Finds long runs of words that stand in training answers."""

    def __init__(self, trained: Iterable[str], words: int = COPY_WORDS) -> None:
        self.words = words
        self._runs = {run for text in trained for run in self._of(text)}

    def score(self, answer: str) -> float:
        """1 where the answer repeats such a run."""
        return float(any(run in self._runs for run in self._of(answer)))

    def _of(self, text: str) -> Iterable[int]:
        words = text.casefold().split()
        # Hashes, because a large training set has millions of overlapping runs.
        return (hash(tuple(words[i : i + self.words])) for i in range(len(words) - self.words + 1))


def format_check(wanted: str) -> Callable[[str], float]:
    """The scorer for a format: `json`, `regex:PATTERN` (the whole answer), or a JSON schema's text.

    Raises DataError when the pattern or the schema is none.
    """
    if wanted == "json":
        return lambda answer: float(_parsed(answer) is not _NOTHING)
    if wanted.startswith("regex:"):
        try:
            pattern = re.compile(wanted.removeprefix("regex:"), re.DOTALL)
        except re.error as error:
            raise DataError(f"the format {wanted!r} is no regular expression: {error}") from None
        return lambda answer: float(pattern.fullmatch(answer.strip()) is not None)
    return _schema_check(wanted)


def guess_format(references: Sequence[str]) -> str:
    """`json` where every reference is a JSON object or list; else no format is expected."""
    if references and all(isinstance(_parsed(r), dict | list) for r in references):
        return "json"
    return ""


def _schema_check(text: str) -> Callable[[str], float]:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        schema = json.loads(text)
        Draft202012Validator.check_schema(schema)
    except (ValueError, SchemaError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"the format is neither json, regex:… nor a JSON schema: {first}") from None
    validator = Draft202012Validator(schema)
    return lambda answer: float(
        (value := _parsed(answer)) is not _NOTHING and bool(validator.is_valid(value))
    )


_NOTHING = object()


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _NOTHING
