"""Labels that the other rows contradict; only where cleanlab is installed."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import numpy as np
import pytest

from timechat.data.cleaning.noise import find_label_noise

SHARED = Path(__file__).parents[3] / "shared" / "data"


def planted(labels: list[int], share: float, seed: int) -> tuple[list[int], dict[int, int]]:
    """The labels with a share of them wrong, and the true ones by place."""
    chance = random.Random(seed)
    places = chance.sample(range(len(labels)), round(share * len(labels)))
    true = {place: labels[place] for place in places}
    wrong = list(labels)
    for place, label in true.items():
        wrong[place] = chance.choice([other for other in set(labels) if other != label])
    return wrong, true


@pytest.mark.slow
def test_planted_wrong_labels_are_found_with_the_right_ones() -> None:
    pytest.importorskip("cleanlab")
    chance = random.Random(0)
    words = [["card", "bank", "pin"], ["train", "rail", "seat"], ["cake", "oven", "flour"]]
    labels = [i % 3 for i in range(300)]
    texts = [
        f"my {' '.join(chance.choices(words[k], k=3))} number {i}" for i, k in enumerate(labels)
    ]
    wrong, true = planted(labels, 0.05, 1)
    assert dict(find_label_noise(texts, np.array(wrong), 0)) == true


@pytest.mark.slow
def test_most_of_five_percent_wrong_labels_in_real_rows_are_found() -> None:
    pytest.importorskip("cleanlab")
    if not (SHARED / "banking77").is_dir():
        pytest.skip("needs ../shared/data/banking77")
    with (SHARED / "banking77" / "train.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:2000]
    names = sorted({row["category"] for row in rows})
    wrong, true = planted([names.index(row["category"]) for row in rows], 0.05, 1)
    found = dict(find_label_noise([row["text"] for row in rows], np.array(wrong), 0))
    hits = set(found) & set(true)
    assert len(hits) >= 60
    assert len(hits) / len(found) >= 0.6
    assert sum(found[place] == true[place] for place in hits) >= 0.9 * len(hits)
