"""Whether an answer says what a person put right.

A person corrects an answer and seldom says which of its words matter. So they are read off: the
words that the correction has, and the wrong answer and the question have not. Where the person
named the fact itself, that alone is looked for. Like every scorer of words it reads words, not
sense (`scorers`): the samples beside the figures are there to be read.
"""

from __future__ import annotations

from timechat.evals.scoring.scorers import contains, normalize, token_f1

# Where the correction only took words away, how near to it the answer must be.
NEAR = 0.6
# Words of so many letters carry little in most languages that put spaces between words.
SHORT_WORD = 3


def puts_right(answer: str, correction: str, wrong: str, question: str, fact: str = "") -> float:
    """1 when `answer` says what `correction` brought, else 0."""
    if fact.strip():
        return contains(answer, [fact])
    brought = brought_words(correction, wrong, question)
    if not brought:
        near = token_f1(answer, correction)
        return float(near >= NEAR and near >= token_f1(answer, wrong))
    said = set(normalize(answer))
    numbers = {word for word in brought if any(map(str.isdigit, word))}
    # Every number, and more than half of all words.
    return float(numbers <= said and 2 * len(brought & said) > len(brought))


def brought_words(correction: str, wrong: str, question: str) -> set[str]:
    """The words of the correction that neither the wrong answer nor the question has; short ones
    ("it", "for") only where there are no others."""
    brought = set(normalize(correction)) - set(normalize(wrong)) - set(normalize(question))
    telling = {w for w in brought if len(w) > SHORT_WORD or any(map(str.isdigit, w))}
    return telling or brought
