"""A file far larger than the memory that reading it takes: measured in a process of its own."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

# The working set that reading may add, whatever the file's size.
MEMORY_MB = 24
FILE_MB = 64
READ = """
import resource, sys
from timechat.conversation import Conversation
from timechat.data.sources import open_sources
from timechat.recipe import Data

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

(small,) = open_sources([sys.argv[1]], Data())
assert sum(1 for _ in small.rows())
before = peak()
(large,) = open_sources([sys.argv[2]], Data())
rows = sum(isinstance(row.found, Conversation) for row in large.rows())
print(rows, peak() - before)
"""


def write(path: Path, count: int) -> int:
    opener = gzip.open if path.suffix == ".gz" else open
    array = path.name.endswith(".json")
    with opener(path, "wt", encoding="utf-8") as file:
        file.write("[" if array else "question,answer\n" if path.suffix == ".csv" else "")
        for number in range(count):
            asked, said = f"question {number} " + "q" * 10_000, f"answer {number} " + "a" * 10_000
            if path.suffix == ".csv":
                file.write(f"{asked},{said}\n")
            else:
                comma = ", " if array and number else ""
                file.write(comma + json.dumps({"question": asked, "answer": said}) + "\n")
        file.write("]" if array else "")
    return count


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "jsonl.gz"])
def test_a_file_larger_than_the_memory_it_takes_streams(tmp_path: Path, ending: str) -> None:
    write(tmp_path / f"small.{ending}", 60)
    count = write(tmp_path / f"large.{ending}", FILE_MB * 50)
    if not ending.endswith("gz"):
        assert (tmp_path / f"large.{ending}").stat().st_size > 60e6
    paths = [str(tmp_path / f"{name}.{ending}") for name in ("small", "large")]
    command = [sys.executable, "-c", READ, *paths]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    rows, grown = map(int, said)
    assert rows == count
    assert grown < MEMORY_MB
