"""Scores of one answer against one question: each scorer a function from 0 to 1, with a version.

A scorer's version changes whenever the same answer could score differently, so that scores of
two versions are never compared (`compare` refuses them). Likelihoods are measured in `run`; what
the scores mean together is for `compare`.

A string scorer reads words, not sense: `contains` counts "it is not 27" as 27, and an answer that
lists every possibility as right. Read the samples beside the figures.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from timechat.conversation import Conversation

CONTAINS = "contains/1"
EXACT_MATCH = "exact_match/1"
TOKEN_F1 = "token_f1/1"

MAX_LABEL_TOKENS = 3
ARTICLES = frozenset({"a", "an", "the"})
_SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
    *("eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_NUMBERS = {word: value for value, word in enumerate(_SMALL)} | {
    word: 10 * value for value, word in enumerate(_TENS, start=2)
}
_NUMBER = re.compile(
    rf"\b(?:({'|'.join(_TENS)})[\s-]+({'|'.join(_SMALL[1:10])})|({'|'.join([*_SMALL, *_TENS])}))\b"
)
_MARKS = str.maketrans({"’": "", "'": "", "‐": "-", "‒": "-", "−": "-"})
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_INITIALS = re.compile(r"\b(?:[^\W\d_]\.){2,}")
_UNSPACED = re.compile(r"([\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])")


def exact_match(answer: str, reference: str) -> float:
    """1 when both are the same words after normalisation."""
    wanted = normalize(reference)
    if not wanted:  # a reference of signs alone, such as an emoji
        return float(answer.strip() == reference.strip())
    return float(normalize(answer) == wanted)


def token_f1(answer: str, reference: str) -> float:
    """The harmonic mean of precision and recall over words (SQuAD, Rajpurkar et al. 2016)."""
    got, wanted = normalize(answer), normalize(reference)
    if not got or not wanted:
        return exact_match(answer, reference)
    shared = sum((Counter(got) & Counter(wanted)).values())
    return 2 * shared / (len(got) + len(wanted))


def contains(answer: str, accepted: Sequence[str]) -> float:
    """1 when any accepted string occurs in the answer as an unbroken run of words."""
    return float(any(_occurs(answer, wanted) for wanted in accepted))


def answer_score(answer: str, question: Conversation) -> float:
    """The score of an answer, from 0 to 1, under the scorer that fits the question."""
    name = scorer_name(question)
    if name == CONTAINS:
        return contains(answer, question.answers)
    if name == EXACT_MATCH:
        return exact_match(answer, question.reference)
    return token_f1(answer, question.reference)


def scorer_name(question: Conversation) -> str:
    """The versioned name of the scorer that `answer_score` uses for this question.

    Accepted answers are looked for in the answer; a label (at most 3 words, or a word without
    spaces such as `card-not-working-yet`) must match; a longer reference is measured by F1.
    """
    if question.answers:
        return CONTAINS
    reference = question.reference.strip()
    one_word = reference.isascii() and len(reference.split()) == 1
    if one_word or len(normalize(reference)) <= MAX_LABEL_TOKENS:
        return EXACT_MATCH
    return TOKEN_F1


def normalize(text: str, *, keep_articles: bool = False) -> list[str]:
    """The words of a text as SQuAD compares them: lower case, no punctuation, no articles.

    Beyond SQuAD: numbers keep their sign, decimals and clock times; number words up to 99 become
    digits; `1,000` is `1000`; an inner underscore stays; Chinese and Japanese characters are words
    of their own; and a text of articles alone keeps them, because "A" can be the answer.
    """
    text = unicodedata.normalize("NFKC", text).casefold().translate(_MARKS)
    text = _THOUSANDS.sub("", text)
    text = _INITIALS.sub(lambda match: match[0].replace(".", ""), text)
    text = _NUMBER.sub(_write_digits, text)
    kept = "".join(char if _is_kept(text, i) else " " for i, char in enumerate(text))
    words = _UNSPACED.sub(r" \1 ", kept).split()
    without = [word for word in words if word not in ARTICLES]
    return words if keep_articles or not without else without


def _occurs(answer: str, wanted: str) -> bool:
    needle = normalize(wanted)
    if not needle:
        return bool(wanted.strip()) and wanted.strip() in answer
    words = normalize(answer, keep_articles=ARTICLES.issuperset(needle))
    size = len(needle)
    return any(words[i : i + size] == needle for i in range(len(words) - size + 1))


def _write_digits(match: re.Match[str]) -> str:
    tens, ones, single = match.groups()
    return str(_NUMBERS[single] if single else _NUMBERS[tens] + _NUMBERS[ones])


def _is_kept(text: str, i: int) -> bool:
    """Whether the character belongs to a word; some signs do, depending on their neighbours."""
    char = text[i]
    if unicodedata.category(char)[0] in "LNM":
        return True
    before = text[i - 1] if i > 0 else " "
    after = text[i + 1] if i + 1 < len(text) else " "
    if char in ".:":
        return before.isdigit() and after.isdigit()
    if char == "_":
        return before.isalnum() and after.isalnum()
    return char == "-" and after.isdigit() and not before.isalnum()
