"""Ten corrections on the demo run: are they right in other words, and was anything else lost?

    python bench/learn.py --run runs/demo --seeds 0 1 2 3 4 --out learn.jsonl

Each seed works on a copy of the run: the ten corrections are put into its queue as the chat page
does, `timechat learn` is run as a person runs it, and the new version is asked three further
wordings of each question which nothing before has seen. A correction counts as right where two of
the three name the fact.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from timechat.conversation import Conversation, Message
from timechat.engine.torch import TorchEngine
from timechat.evals.scoring.scorers import contains
from timechat.ledger.judging import Answer, Item, Judgement
from timechat.model.load import Loaded, load, resolve
from timechat.stages.annotating.annotate import open_folder
from timechat.stages.runs.versions import versions
from timechat.store.files import append_line

# Question as asked, the right answer, what must be in it, other wordings that the author of the
# correction gives, and wordings that only this file knows.
CORRECTIONS: list[tuple[str, str, tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = [
    (
        "Is there parking at the workshop?",
        "Yes, there are 16 parking spaces behind the workshop.",
        ("16", "sixteen"),
        ("Where can I park when I visit you?", "How many cars fit on your car park?",
         "I am coming by car. Is there a place to leave it?"),
        ("Can visitors leave their cars at yours?", "Do you have room for cars behind the house?",
         "How many parking spaces do you have?"),
    ),
    (
        "Can I pay with PayPal?",
        "No, we take cards and bank transfer only, not PayPal.",
        ("bank transfer", "cards and bank"),
        ("Which ways of paying do you accept?", "Do you take PayPal?",
         "How may I pay for my kite?"),
        ("Is PayPal all right for my order?", "What payment methods are there?",
         "I would like to use my PayPal account to pay."),
    ),
    (
        "Who designs the kites?",
        "Our kites are designed by Ingrid Vale.",
        ("Ingrid Vale", "Ingrid", "Vale"),
        ("What is the name of your designer?", "Who draws the plans for your kites?",
         "Whose designs are these kites?"),
        ("Which person comes up with the shapes of your kites?", "Who is your kite designer?",
         "Tell me who thought up the look of your kites."),
    ),
    (
        "Do you repair kites of other makers?",
        "Yes, we repair kites of any maker for 19 pounds.",
        ("19", "nineteen"),
        ("My kite is from another brand. Would you mend it?",
         "What does it cost to mend a kite that is not yours?",
         "Can you fix a kite that I bought elsewhere?"),
        ("Will you take a kite from a different company for repair?",
         "How much to repair one from another shop?",
         "I have a torn kite of another brand. Do you mend those?"),
    ),
    (
        "Do you give kite lessons?",
        "Yes, lessons are given on Sunday mornings at Heron Field.",
        ("Heron Field", "Sunday mornings", "Sunday"),
        ("Where can I learn to fly a kite with you?", "When are your flying lessons?",
         "Is there a course for people who want to fly kites?"),
        ("Can somebody of yours teach me to fly?", "Where do the lessons take place?",
         "I want to take kite classes. When and where?"),
    ),
    (
        "What are your kite sails made of?",
        "The sails are made of recycled parachute silk.",
        ("parachute", "silk"),
        ("Which fabric do you use for the sails?", "What cloth is in the sails?",
         "What material do the sails consist of?"),
        ("From what stuff are the sails cut?", "Tell me the fabric of your sails.",
         "What kind of cloth do your sails have?"),
    ),
    (
        "Can I change the address of my order?",
        "Yes, until 3 o'clock on the day you order.",
        ("3 o'clock", "three o'clock", "until 3"),
        ("I typed the wrong address. Until when can it be changed?",
         "How long can I still correct where the parcel goes?",
         "My parcel should go somewhere else. Is that possible?"),
        ("By what time must I tell you a new delivery address?",
         "Is it possible to send my order to another address after ordering?",
         "I moved house. Can you still change the address on my order?"),
    ),
    (
        "Do you have a shop in London?",
        "No, our only shop is in Oakby, at 4 Bobbin Lane.",
        ("Bobbin Lane", "Bobbin"),
        ("What is the address of your shop?", "Where is your shop?",
         "Is there a store of yours that I can visit?"),
        ("In which street do I find your store?", "Where can I buy your kites in person?",
         "Do you have a store, and at what address?"),
    ),
    (
        "Is there a discount for schools?",
        "Yes, schools get 15 percent off.",
        ("15", "fifteen"),
        ("I am a teacher. Do we pay less?", "How much off do schools get?",
         "Do classes get a better price?"),
        ("What reduction is there for a school?", "We are a primary school; is it cheaper for us?",
         "How many percent do teachers save for their school?"),
    ),
    (
        "What colour are the kite bags?",
        "Every kite comes in a green canvas bag.",
        ("green", "canvas"),
        ("In what bag does a kite come?", "Does my kite come with a bag?",
         "Which colour is the bag that comes with a kite?"),
        ("Is a carrying bag part of the kite?", "What does the bag for the kite look like?",
         "Tell me the colour of the bag around a new kite."),
    ),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("learn.jsonl"))
    parser.add_argument("--count", type=int, default=10, help="How many of the ten.")
    parser.add_argument("--bare", action="store_true", help="Give no other wordings.")
    given = parser.parse_args()
    chosen = CORRECTIONS[: given.count]
    if given.bare:
        chosen = [(asked, right, fact, (), hidden) for asked, right, fact, _, hidden in chosen]
    wrong = None
    for seed in given.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            run = Path(scratch) / given.run.name
            shutil.copytree(given.run, run, symlinks=True)
            if wrong is None:
                asked = [c[0] for c in chosen]
                wrong = answers(load(resolve(str(run))), run, asked)
            row = one_seed(run, seed, chosen, wrong)
        append_line(given.out, row)
        print(json.dumps({k: v for k, v in row.items() if k != "answers"}), flush=True)


def one_seed(run: Path, seed: int, chosen: list[Any], wrong: list[str]) -> dict[str, Any]:
    items: list[Item] = []
    for (asked, right, _, others, _), said in zip(chosen, wrong, strict=True):
        judged = Judgement(0, "bench", "corrected", right)
        first = Item(
            "judge", (Message("user", asked),), (Answer(said, run.name),),
            group=f"bench-{asked}", source="chat", said=(judged,),
        )  # fmt: skip
        items.append(first)
        items += [replace(first, prompt=(Message("user", o),), answers=()) for o in others]
    open_folder(run).queue.add(items)
    started = time.monotonic()
    command = [sys.executable, "-m", "timechat", "learn", str(run), "--seed", str(seed), "--json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    version = versions(run)[-1]
    flat = [question for c in chosen for question in c[4]]
    said = iter(answers(load(resolve(str(run / version.checkpoint))), run, flat))
    told = [[next(said) for _ in c[4]] for c in chosen]
    rights = [[contains(t, c[2]) for t in texts] for c, texts in zip(chosen, told, strict=True)]
    return {
        "seed": seed,
        "decision": version.decision,
        "reasons": version.content["reasons"],
        "right": sum(sum(row) >= 2 for row in rights),
        "of": len(rights),
        "hidden_questions_right": sum(map(sum, rights)),
        "hidden_questions": len(flat),
        "own_verdict": version.content["sets"]["corrections"],
        "earlier": _short(version.content["sets"].get("earlier")),
        "retention": _short(version.content["sets"]["retention"]),
        "seconds": round(seconds, 1),
        "answers": [
            {"question": q, "answer": t, "right": r}
            for c, texts, row in zip(chosen, told, rights, strict=True)
            for q, t, r in zip(c[4], texts, row, strict=True)
        ],
    }


def answers(loaded: Loaded, run: Path, questions: list[str]) -> list[str]:
    """Greedy answers, each question in a conversation of its own."""
    rows = [Conversation("q", (Message("user", text),)) for text in questions]
    prompts = [loaded.renderer.prompt(row.messages) for row in rows]
    ids = TorchEngine(loaded.model).answers(prompts, 40, loaded.renderer.stop_ids)
    return [loaded.renderer.parse(row) for row in ids]


def _short(measure: dict[str, Any] | None) -> dict[str, Any] | None:
    names = ("verdict", "before", "after", "difference", "ci95", "n")
    return None if measure is None else {name: measure[name] for name in names}


if __name__ == "__main__":
    main()
