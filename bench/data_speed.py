"""How fast rows are prepared, and whether planted near-duplicates are found: by size, streamed.

    python bench/data_speed.py                      # 10^4, 10^5 and 10^6 conversations
    python bench/data_speed.py 10000 --others       # with rensa, datasketch and datatrove beside it

Each size runs in a process of its own, so that its peak memory is its own. One conversation in
twenty is a near-duplicate of an earlier one; recall is the share of these that came to lie in one
cluster with their original, precision the share of linked pairs whose true Jaccard (computed anew
from the texts, with Python's own sets) reaches the threshold. Processor seconds tell how it grows
where neighbours make the clock's seconds mean little.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHARE = 20
CHECKED_PAIRS = 20_000


def words(chance: random.Random) -> list[str]:
    """A made-up vocabulary, pronounceable, so that pieces of words repeat as they do in speech."""
    first, middle = "bcdfghjklmnprstvw", "aeiou"
    return [
        "".join(chance.choice(first) + chance.choice(middle) for _ in range(chance.randint(1, 4)))
        for _ in range(20_000)
    ]


def conversations(count: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Rows, each with the number of the row it nearly repeats, or -1."""
    chance = random.Random(0)
    vocabulary = words(chance)
    kept: list[tuple[int, str]] = []
    for number in range(count):
        origin = -1
        if number % SHARE == SHARE - 1 and kept:
            origin, text = chance.choice(kept)
            spoken = text.split()
            spoken[chance.randrange(len(spoken))] = chance.choice(vocabulary)
            asked = " ".join(spoken) + chance.choice(["", "!", " please"])
        else:
            asked = " ".join(chance.choices(vocabulary, k=chance.randint(15, 30)))
            if number % 7 == 0:
                kept.append((number, asked))
        answer = " ".join(chance.choices(vocabulary, k=chance.randint(5, 25)))
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        yield {"messages": turns}, origin


def grams(text: str) -> set[str]:
    return {text[i : i + 4] for i in range(len(text) - 3)}


def jaccard(one: str, other: str) -> float:
    a, b = grams(one), grams(other)
    return len(a & b) / len(a | b)


def told(text: str) -> None:
    """Progress, on standard error: the longest size takes minutes, and says where it is."""
    print(f"  {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def measure(count: int) -> dict[str, Any]:
    """One size: written, prepared, and its links judged."""
    from timechat.conversation import Conversation
    from timechat.data.splitting.links import TOGETHER, relate
    from timechat.data.splitting.near import Askings
    from timechat.recipe import Data
    from timechat.stages.preparing.prepare import prepare

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        planted: list[tuple[int, int]] = []
        with (folder / "rows.jsonl").open("w") as file:
            for number, (row, origin) in enumerate(conversations(count)):
                file.write(json.dumps(row) + "\n")
                if origin >= 0:
                    planted.append((origin, number))
        size = (folder / "rows.jsonl").stat().st_size
        told(f"{count:,} rows written, {size / 1e6:.0f} MB; preparing them")
        begin, worked = time.perf_counter(), time.process_time()
        prepared = prepare(Data(train=(str(folder / "rows.jsonl"),)), folder / "out", told)
        seconds = time.perf_counter() - begin
        worked = time.process_time() - worked
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
        told(f"prepared in {seconds:.1f} s, {peak:.2f} GiB at most; judging the links")
        sides = [
            {row["line"] for row in map(json.loads, (folder / "out" / f"{s}.jsonl").open())}
            for s in ("train", "validation", "test")
        ]
        parted = sum(any((a + 1 in side) != (b + 1 in side) for side in sides) for a, b in planted)
        askings = Askings(folder)
        asked: list[str] = []
        for number, (row, _) in enumerate(conversations(count)):
            conversation = Conversation.from_dict(row)
            asked.append(conversation.messages[0].content.strip("!"))
            askings.add(conversation, number)
        begin = time.perf_counter()
        related = relate(count, [], askings, near=True, keep=True)
        near_seconds = time.perf_counter() - begin
        clusters = related.clusters
        near = [(a, b) for a, b in planted if jaccard(asked[a], asked[b]) >= TOGETHER]
        found = sum(int(clusters[a] == clusters[b]) for a, b in near)
        pairs = related.pairs[:CHECKED_PAIRS]
        right = sum(jaccard(asked[a], asked[b]) >= TOGETHER for a, b, _ in pairs)
        askings.close()
    return {
        "conversations": count,
        "megabytes": round(size / 1e6),
        "seconds": round(seconds, 1),
        "rows_a_second": round(count / seconds),
        "processor_seconds": round(worked, 1),
        "near_seconds": round(near_seconds, 1),
        "peak_gib": round(peak, 2),
        "planted": len(near),
        "recall": round(found / max(1, len(near)), 4),
        "precision": round(right / max(1, len(pairs)), 4),
        "parted_by_the_split": parted,
        "kept": prepared.card.rows_kept,
    }


def measure_others(count: int) -> list[dict[str, Any]]:
    """The same texts through other MinHash libraries: candidates alone, none is verified."""
    texts = []
    planted = []
    for number, (row, origin) in enumerate(conversations(count)):
        texts.append(row["messages"][0]["content"].strip("!"))
        if origin >= 0:
            planted.append((origin, number))
    near = [(a, b) for a, b in planted if jaccard(texts[a], texts[b]) >= 0.7]
    found: list[dict[str, Any]] = []
    for name, run in (
        ("rensa", with_rensa),
        ("datasketch", with_datasketch),
        ("datatrove", with_datatrove),
    ):
        try:
            found.append(run(texts, near))
        except ImportError as error:
            found.append({"tool": name, "not_run": str(error)})
    return found


def with_rensa(texts: list[str], near: list[tuple[int, int]]) -> dict[str, Any]:
    from rensa import RMinHash, RMinHashLSH

    begin = time.process_time()
    index = RMinHashLSH(threshold=0.7, num_perm=125, num_bands=25)
    hashes = []
    for number, text in enumerate(texts):
        made = RMinHash(num_perm=125, seed=1)
        made.update(list(grams(text)))
        hashes.append(made)
        index.insert(number, made)
    pairs = {
        (min(number, other), max(number, other))
        for number, made in enumerate(hashes)
        for other in index.query(made)
        if other != number
    }
    return _told("rensa", texts, near, pairs, time.process_time() - begin)


def with_datasketch(texts: list[str], near: list[tuple[int, int]]) -> dict[str, Any]:
    from datasketch import MinHash, MinHashLSH

    begin = time.process_time()
    index = MinHashLSH(params=(25, 5), num_perm=125)
    pairs: set[tuple[int, int]] = set()
    for number, text in enumerate(texts):
        made = MinHash(num_perm=125)
        made.update_batch([gram.encode() for gram in grams(text)])
        pairs.update((other, number) for other in index.query(made))
        index.insert(number, made)
    return _told("datasketch", texts, near, pairs, time.process_time() - begin)


class _Characters:
    """For datatrove in place of spaCy's words: the characters that the others' grams are of."""

    def word_tokenize(self, text: str) -> list[str]:
        return list(text)


def with_datatrove(texts: list[str], near: list[tuple[int, int]]) -> dict[str, Any]:
    """Its three steps in this process, on disk as it likes it, without an executor's start."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup import minhash

    minhash.load_word_tokenizer = lambda language: _Characters()
    settings = minhash.MinhashConfig(n_grams=4, num_buckets=25, hashes_per_bucket=5)
    begin = time.process_time()
    with tempfile.TemporaryDirectory() as name:
        signed, bucketed, removed = f"{name}/signed", f"{name}/bucketed", f"{name}/removed"
        documents = (Document(text=text, id=str(i)) for i, text in enumerate(texts))
        minhash.MinhashDedupSignature(signed, settings).run(documents, 0, 1)
        for bucket in range(25):
            step = minhash.MinhashDedupBuckets(signed, bucketed, config=settings)
            step.run(None, bucket, 25)
        minhash.MinhashDedupCluster(bucketed, removed, config=settings).run(None, 0, 1)
        seconds = time.process_time() - begin
        pairs = {
            (min(one, other), max(one, other))
            for path in Path(bucketed).glob("*.dups")
            for _, one, _, other in struct.iter_unpack("<4I", path.read_bytes())
        }
    return _told("datatrove", texts, near, pairs, seconds)


def _told(
    name: str,
    texts: list[str],
    near: list[tuple[int, int]],
    pairs: set[tuple[int, int]],
    seconds: float,
) -> dict[str, Any]:
    right = sum(jaccard(texts[a], texts[b]) >= 0.7 for a, b in pairs)
    return {
        "tool": name,
        "conversations": len(texts),
        "processor_seconds": round(seconds, 1),
        "recall": round(sum(pair in pairs for pair in near) / max(1, len(near)), 4),
        "precision": round(right / max(1, len(pairs)), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sizes", nargs="*", type=int, default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--others", action="store_true", help="other MinHash libraries beside it")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for size in arguments.sizes:
        if arguments.one:
            print(json.dumps(measure(size)), flush=True)
            continue
        command = [sys.executable, __file__, str(size), "--one"]
        measured = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        print(measured.stdout, end="", flush=True)
        if arguments.others:
            for line in measure_others(size):
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
