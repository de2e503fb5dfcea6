"""One question in other words, by rules: what stands in where a person gave no other wording.

Two kinds that share nothing but the question itself: `for_training` and `for_checking`. What a rule
makes is weaker evidence than what a person wrote, since it keeps the question's own words; whoever
counts with it has to say so. Leaving words out anew at each sight of a row is `augment`'s.
"""

from __future__ import annotations

import py3langid

# A word of at most this many letters is taken for one that carries little ("do you", "is the").
SHORT_WORD = 3
FEWEST_WORDS = 2
# Said around a question without changing it. Only for English, in which they are written.
TRAINING_FRAMES = ("Hello! {}", "{} Thank you.", "A short question: {}")
CHECKING_FRAME = "I was wondering, {}"
MIN_LETTERS = 12


def for_training(question: str) -> list[str]:
    """Other ways to put `question`, none of which `for_checking` gives."""
    if not is_english(question):
        return []
    return _others(question, [frame.format(question) for frame in TRAINING_FRAMES])


def for_checking(question: str) -> list[str]:
    """The question in key words alone, as one types them into a search box; in lower case without
    its marks; and, in English, inside a sentence."""
    bare = " ".join(_bare(word) for word in question.split() if _bare(word))
    key = [w for w in bare.split() if len(w) > SHORT_WORD or any(map(str.isdigit, w))]
    made = [" ".join(key)] if len(key) >= FEWEST_WORDS else []
    if is_english(question):
        made.append(CHECKING_FRAME.format(bare))
    else:
        made.append(bare)
    return _others(question, made)


def is_english(text: str) -> bool:
    """Whether `text` has letters enough to tell, and they are English."""
    return sum(map(str.isalpha, text)) >= MIN_LETTERS and py3langid.classify(text)[0] == "en"


def _bare(word: str) -> str:
    """A word in lower case without the marks around it; those inside it (8:20, e-mail) stay."""
    start, end = 0, len(word)
    while start < end and not word[start].isalnum():
        start += 1
    while end > start and not word[end - 1].isalnum():
        end -= 1
    return word[start:end].lower()


def _others(question: str, made: list[str]) -> list[str]:
    """Those that are another text than the question, each once."""
    return [text for text in dict.fromkeys(made) if text.strip() and text != question]
