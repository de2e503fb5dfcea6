"""What forgetting costs, and what each remedy brings back: runs that differ in one thing each.

One run is pushed to forget (narrow rows, a high rate, many epochs, nothing to hold it); the others
do the same with one remedy: a lower strength, replay of shipped texts, replay of the base's own
answers, a lower rate, all of them, or what a recipe gets that names none. Each is asked the same
held-out and general questions.

    python bench/proof_remedies.py --out runs/remedies                      the help desk
    python bench/proof_remedies.py --out runs/remedies-banking \\
        --train banking77/train.csv --test banking77/test.csv --columns user=text assistant=category
    python bench/proof_remedies.py --out DIR --rows 48 --epochs 6 --only pushed replay-base

A run that exists is not trained again, so that the table can be filled over several evenings.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from timechat.cli.display import Display
from timechat.data.sources import read_questions
from timechat.recipe import Recipe, parse_recipe
from timechat.records import Report
from timechat.shipped import shipped
from timechat.stages.comparing.compare import compare
from timechat.stages.training.train import train
from timechat.store.files import read_json, write_lines

NOTHING_HELD = {"replay": 0.0, "average": 0.0, "word_dropout": 0.0}
ALL_GENERAL = 1_000
ARMS: dict[str, dict[str, Any]] = {
    "pushed": {"train": NOTHING_HELD, "strength": 1.0},
    "strength": {"train": NOTHING_HELD, "strength": "auto"},
    "replay-shipped": {"train": {**NOTHING_HELD, "replay": 0.25}, "strength": 1.0},
    "replay-base": {
        "train": {**NOTHING_HELD, "replay": 0.25, "replay_from": "base"},
        "strength": 1.0,
    },
    "lower-rate": {"train": {**NOTHING_HELD, "learning_rate": 3e-4}, "strength": 1.0},
    "all": {"train": {"replay": 0.25, "replay_from": "base"}, "strength": "auto"},
    # What a recipe gets that names none of this.
    "defaults": {"train": {"learning_rate": "auto"}, "strength": "auto"},
}


def recipe_of(arm: str, data: dict[str, Any], rate: float, epochs: float, asked: int) -> Recipe:
    about = ARMS[arm]
    return parse_recipe(
        {
            "base": "starter",
            "data": data,
            "adapt": {"strength": about["strength"]},
            "train": {"learning_rate": rate, "epochs": epochs, "seed": 0, **about["train"]},
            "evaluate": {"max_questions": asked},
        }
    )


def first_rows(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The data section: the first rows of a training file, and a test file of its own."""
    columns = dict(pair.split("=", 1) for pair in given.columns)
    if given.train is None:
        with shipped("helpdesk/conversations.jsonl").open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file][: given.rows]
        with shipped("helpdesk/questions.jsonl").open(encoding="utf-8") as file:
            asked = [json.loads(line) for line in file]
        write_lines(folder / "train.jsonl", rows)
        write_lines(folder / "test.jsonl", asked)
        return {"train": [str(folder / "train.jsonl")], "test": [str(folder / "test.jsonl")]}
    train = spread(given.train, given.rows, folder / "train")
    test = [spread(given.test, given.questions, folder / "test")] if given.test else []
    return {"train": [train], "test": test, "columns": columns, "overlap": "drop"}


def spread(file: Path, count: int, to: Path) -> str:
    """`count` rows of `file`, every so many, because such files are often sorted by label; as a
    file of their own, so that whoever asks again asks the same."""
    target = to.with_suffix(file.suffix)
    if file.suffix == ".csv":
        with file.open(encoding="utf-8", newline="") as source:
            head, *table = csv.reader(source)
        with target.open("w", encoding="utf-8", newline="") as written:
            csv.writer(written).writerows([head, *every(table, count)])
    else:
        write_lines(target, every([row.to_dict() for row in read_questions(file)], count))
    return str(target)


def every(rows: list[Any], count: int) -> list[Any]:
    return rows[:: max(1, len(rows) // count)][:count]


def line_of(arm: str, run: Path) -> str:
    report = read_json(run / "report.json")
    task, kept = report["task"], report["retention"]
    nats = {m["name"]: m["difference"] for m in report["measures"]}
    low, high = (100 * end for end in kept["ci95"])
    return (
        f"| {arm} | {task['before']:.1%} to {task['after']:.1%} | "
        f"{100 * kept['difference']:+.1f} [{low:+.1f}, {high:+.1f}] | {kept['verdict']} | "
        f"{-nats['likelihood of general answers']:+.3f} | "
        f"{-nats['likelihood of plain prose']:+.3f} | {report['run']['strength']:g} | "
        f"{report['run']['train_seconds']:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="What forgetting costs, and what remedies save.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--columns", nargs="*", default=[], metavar="ROLE=NAME")
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--questions", type=int, default=160)
    parser.add_argument("--all-general", action="store_true", help="ask all general questions")
    parser.add_argument("--only", nargs="*", choices=list(ARMS), default=list(ARMS))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    data = first_rows(given, given.out)
    for arm in given.only:
        run = given.out / arm
        if not (run / "report.json").is_file():
            report: Report = train(
                recipe_of(arm, data, given.rate, given.epochs, given.questions), run, Display()
            ).report
            assert report.retention.n, "a run was not asked what it knew before"
        if given.all_general and read_json(run / "report.json")["retention"]["n"] < ALL_GENERAL:
            # A short run asks a fifth of the general questions: too few to tell a loss of 12
            # points from one of 5.
            compare([str(run)], None, "", None, Display())
    print("| run | answer score | general ability, points | verdict | general answers, nats |"
          " prose, nats | strength | training s |")  # fmt: skip
    print("|" + " --- |" * 8)
    for arm in given.only:
        print(line_of(arm, given.out / arm))


if __name__ == "__main__":
    main()
