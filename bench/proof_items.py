"""The generated part of the general suite: sums and grammar, each right by construction.

A seeded script, so that every item can be checked by reading its rule here. The items written by
hand are in `items.jsonl` and `more.jsonl` beside the file that this writes; none of these questions
stands there or among the rows that training replays.

    python bench/proof_items.py            writes src/timechat/shipped/general/generated.jsonl
    python bench/proof_items.py --check    says whether that file is what this script makes
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "src" / "timechat" / "shipped" / "general"
EACH, WATCHED = 10, 14

Item = tuple[str, str, list[str]]
Maker = Callable[[random.Random], Item]

PAST = {
    "eat": "ate", "take": "took", "give": "gave", "write": "wrote", "drive": "drove",
    "sing": "sang", "swim": "swam", "break": "broke", "speak": "spoke", "fly": "flew",
    "grow": "grew", "know": "knew", "throw": "threw", "begin": "began", "drink": "drank",
    "choose": "chose", "fall": "fell", "wear": "wore",
}  # fmt: skip
PARTICIPLES = {
    "eat": "eaten", "take": "taken", "give": "given", "write": "written", "drive": "driven",
    "sing": "sung", "swim": "swum", "break": "broken", "speak": "spoken", "fly": "flown",
    "grow": "grown", "know": "known", "throw": "thrown", "begin": "begun", "drink": "drunk",
    "choose": "chosen", "fall": "fallen", "wear": "worn",
}  # fmt: skip
PLURALS = {
    "man": "men", "woman": "women", "foot": "feet", "tooth": "teeth", "goose": "geese",
    "mouse": "mice", "knife": "knives", "leaf": "leaves", "wolf": "wolves", "baby": "babies",
    "city": "cities", "box": "boxes", "glass": "glasses", "potato": "potatoes", "wife": "wives",
    "lady": "ladies", "watch": "watches", "half": "halves",
}  # fmt: skip
COMPARED = {
    "tall": ("taller", "tallest"), "happy": ("happier", "happiest"), "hot": ("hotter", "hottest"),
    "easy": ("easier", "easiest"), "old": ("older", "oldest"), "thin": ("thinner", "thinnest"),
    "busy": ("busier", "busiest"), "cold": ("colder", "coldest"), "sad": ("sadder", "saddest"),
    "heavy": ("heavier", "heaviest"), "long": ("longer", "longest"), "wet": ("wetter", "wettest"),
}  # fmt: skip
NOUNS = ("teacher", "farmer", "child", "driver", "neighbour", "singer", "doctor", "student")
VERBS = ("sing", "work", "run", "sleep", "read", "walk", "laugh", "swim")
VOWELS = ("apple", "egg", "orange", "island", "umbrella", "old car", "empty box", "ugly hat")
CONSONANTS = ("dog", "house", "red apple", "big egg", "table", "lamp", "new umbrella", "cold ice")
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Ida", "Jack")
THINGS = ("books", "apples", "coins", "stamps", "marbles", "pencils", "cards", "shells")


def near(right: int, chance: random.Random, *likely: int) -> list[str]:
    """Three wrong numbers near the right one, the likely slips first; none is negative."""
    pool = [*likely, *(right + step for step in chance.sample((-10, -3, -2, -1, 1, 2, 3, 10), 8))]
    return [str(n) for n in dict.fromkeys(pool) if n >= 0 and n != right][:3]


def apart(right: int, chance: random.Random) -> list[str]:
    """Three wrong numbers that nothing in the question suggests, seven times as far off as `near`.

    For questions whose own numbers tempt a small model more than the right one: with those among
    the answers it is never right, and a group that stands at nothing cannot show a loss.
    """
    pool = (right + 7 * step for step in chance.sample((-10, -3, -2, -1, 1, 2, 3, 10), 8))
    return [str(n) for n in pool if n > 0][:3]


def addition(chance: random.Random) -> Item:
    a, b = chance.randint(21, 79), chance.randint(12, 68)
    return f"What is {a} + {b}?", str(a + b), near(a + b, chance)


def subtraction(chance: random.Random) -> Item:
    a, b = chance.randint(41, 98), chance.randint(11, 39)
    return f"What is {a} - {b}?", str(a - b), near(a - b, chance)


def product(chance: random.Random) -> Item:
    a, b = chance.randint(3, 9), chance.randint(3, 12)
    return f"What is {a} multiplied by {b}?", str(a * b), near(a * b, chance, a * b + a, a + b)


def quotient(chance: random.Random) -> Item:
    a, b = chance.randint(3, 9), chance.randint(3, 12)
    return f"What is {a * b} divided by {a}?", str(b), near(b, chance)


def largest(chance: random.Random) -> Item:
    a, b, c, d = chance.sample(range(11, 99), 4)
    top = max(a, b, c, d)
    wrong = [str(n) for n in (a, b, c, d) if n != top]
    return f"Which of these numbers is the largest: {a}, {b}, {c} or {d}?", str(top), wrong


def sequence(chance: random.Random) -> Item:
    first, step = chance.randint(1, 20), chance.choice((2, 3, 4, 5, 10))
    shown = ", ".join(str(first + step * i) for i in range(4))
    right = first + 4 * step
    return f"Which number comes next: {shown}?", str(right), apart(right, chance)


def doubling(chance: random.Random) -> Item:
    a = chance.randint(12, 60)
    if chance.random() < 0.5:
        return f"What is twice {a}?", str(2 * a), apart(2 * a, chance)
    return f"What is half of {2 * a}?", str(a), apart(a, chance)


def buying(chance: random.Random) -> Item:
    name, thing = chance.choice(NAMES), chance.choice(THINGS)
    a, b = chance.randint(4, 20), chance.randint(2, 9)
    text = f"{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have now?"
    return text, str(a + b), apart(a + b, chance)


def giving(chance: random.Random) -> Item:
    name, thing = chance.choice(NAMES), chance.choice(THINGS)
    a, b = chance.randint(11, 25), chance.randint(2, 9)
    text = f"{name} has {a} {thing} and gives away {b}. How many {thing} are left?"
    return text, str(a - b), apart(a - b, chance)


def pricing(chance: random.Random) -> Item:
    a, b = chance.randint(2, 6), chance.randint(2, 9)
    text = f"One ticket costs {b} dollars. How many dollars do {a} tickets cost?"
    return text, str(a * b), apart(a * b, chance)


def past(chance: random.Random) -> Item:
    verb = chance.choice(list(PAST))
    wrong = [f"{verb}ed" if not verb.endswith("e") else f"{verb}d", f"{verb}ing", PARTICIPLES[verb]]
    return f'What is the simple past of the verb "{verb}"?', PAST[verb], wrong


def perfect(chance: random.Random) -> Item:
    verb = chance.choice(list(PAST))
    wrong = [f"{verb}s", f"will {verb}", f"is {verb}"]
    return f'Fill the gap with a form of "{verb}": "She has ___."', PARTICIPLES[verb], wrong


def plural(chance: random.Random) -> Item:
    noun = chance.choice(list(PLURALS))
    pool = [f"{noun}s", f"{noun}es", f"{noun}ses", noun]
    wrong = [word for word in pool if word != PLURALS[noun]][:3]
    return f'What is the plural of the noun "{noun}"?', PLURALS[noun], wrong


def one_subject(chance: random.Random) -> Item:
    noun, verb = chance.choice(NOUNS), chance.choice(VERBS)
    right = f"The {noun} {verb}s every day."
    wrong = [f"The {noun} {verb} every day.", f"The {noun} {verb}ing every day."]
    return _listed("Which sentence is correct?", right, [*wrong, f"The {noun} are {verb} every day."], chance)  # noqa: E501  # fmt: skip


def many_subjects(chance: random.Random) -> Item:
    noun, verb = chance.choice(NOUNS), chance.choice(VERBS)
    nouns = "children" if noun == "child" else f"{noun}s"
    right = f"Two {nouns} {verb} together."
    wrong = [f"Two {nouns} {verb}s together.", f"Two {noun} {verb} together."]
    return _listed("Which sentence is correct?", right, [*wrong, f"Two {nouns} is {verb} together."], chance)  # noqa: E501  # fmt: skip


def comparative(chance: random.Random) -> Item:
    word = chance.choice(list(COMPARED))
    more, most = COMPARED[word]
    text = f'Fill the gap with a form of "{word}": "Mine is ___ than yours."'
    return text, more, [f"most {word}", f"{most} as", f"very {word}"]


def superlative(chance: random.Random) -> Item:
    word = chance.choice(list(COMPARED))
    more, most = COMPARED[word]
    text = f'Fill the gap with a form of "{word}": "It is the ___ of all."'
    return text, most, [f"very {word}", f"{more} than", f"as {word}"]


def article(chance: random.Random) -> Item:
    begins = chance.random() < 0.5
    phrase = chance.choice(VOWELS if begins else CONSONANTS)
    right, other = ("an", "a") if begins else ("a", "an")
    wrong = [f"I see {other} {phrase}.", f"I see {phrase} {right}.", f"I see {phrase} {other}."]
    return _listed("Which sentence is correct?", f"I see {right} {phrase}.", wrong, chance)


def pronoun(chance: random.Random) -> Item:
    subject, objective = chance.choice(
        (("I", "me"), ("he", "him"), ("she", "her"), ("we", "us"), ("they", "them"))
    )
    name, verb = chance.choice(NAMES), chance.choice(("helped", "called", "saw", "thanked"))
    wrong = [f"{name} {verb} {subject}.", f"{objective.capitalize()} {verb} {name}."]
    wrong.append(f"{name} {subject} {verb}.")
    return _listed("Which sentence is correct?", f"{name} {verb} {objective}.", wrong, chance)


def negation(chance: random.Random) -> Item:
    name, verb = chance.choice(NAMES), chance.choice(VERBS)
    wrong = [f"{name} does not {verb}s.", f"{name} do not {verb}.", f"{name} not {verb}."]
    return _listed("Which sentence is correct?", f"{name} does not {verb}.", wrong, chance)


ARITHMETIC = (
    addition, subtraction, product, quotient, largest, sequence, doubling, buying, giving, pricing,
)  # fmt: skip
GRAMMAR = (
    past, perfect, plural, one_subject, many_subjects, comparative, superlative, article, pronoun,
    negation,
)  # fmt: skip


def _listed(text: str, right: str, wrong: list[str], chance: random.Random) -> Item:
    """The choices in the question, the right one at a place that chance decides."""
    shown = [right, *wrong]
    chance.shuffle(shown)
    return text + "".join(f"\n- {choice}" for choice in shown), right, wrong


def taken() -> set[str]:
    """Every question that stands in another file of the suite or is replayed."""
    asked: set[str] = set()
    for name in ("items.jsonl", "more.jsonl", "answers.jsonl"):
        for line in (FOLDER / name).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            asked.add(row["question"] if "question" in row else row["messages"][0]["content"])
    return asked


def rows() -> Iterator[dict[str, object]]:
    seen = taken()
    for tag, makers in (("arithmetic", ARITHMETIC), ("grammar", GRAMMAR)):
        number = 0
        chance = random.Random(f"timechat-{tag}")
        plans = [(maker, f"{tag}-made-{maker.__name__.replace('_', '-')}", "") for maker in makers]
        for maker, group, split in plans:
            for _ in range(EACH):
                number += 1
                yield _row(tag, number, group, split, _fresh(maker, chance, seen))
        for i in range(WATCHED):
            number += 1
            item = _fresh(makers[i % len(makers)], chance, seen)
            yield _row(tag, number, f"{tag}-watched", "choose", item)


def _fresh(maker: Maker, chance: random.Random, seen: set[str]) -> Item:
    """An item whose question nobody asked yet, with four different choices."""
    while True:
        question, right, wrong = maker(chance)
        if question not in seen and len({right, *wrong}) == 4:
            seen.add(question)
            return question, right, wrong


def _row(tag: str, number: int, group: str, split: str, item: Item) -> dict[str, object]:
    question, right, wrong = item
    row: dict[str, object] = {"id": f"{tag}-g{number:03d}", "group": group, "tags": [tag]}
    row |= {"question": question, "answer": right, "wrong": wrong}
    return row | ({"split": split} if split else {})


def main() -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows())
    file = FOLDER / "generated.jsonl"
    if "--check" in sys.argv:
        sys.exit(0 if file.read_text(encoding="utf-8") == text else "generated.jsonl is another")
    file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
