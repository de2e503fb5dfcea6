"""Documents to chunks: paragraphs, joined or cut to about one size, each with its source."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from timechat.errors import DataError

WORDS = 120
OVERLAP = 20
SUFFIXES = (".txt", ".md", ".json", ".jsonl")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document: its text, the file it came from, its number in that file."""

    text: str
    source: str
    number: int


def read_chunks(folder: Path, words: int = WORDS) -> list[Chunk]:
    """The chunks of every text file under `folder` (or of one file).

    Raises DataError where nothing readable is there, naming what is.
    """
    if not folder.exists():
        raise DataError(f"no documents at {folder}")
    files = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.is_file())
    chosen = [file for file in files if file.suffix.lower() in SUFFIXES]
    chunks = [chunk for file in chosen for chunk in _cut_file(file, words)]
    if not chunks:
        raise DataError(
            f"{folder} holds no text: {len(files)} files, none of {', '.join(SUFFIXES)} with words"
        )
    return chunks


def cut(text: str, words: int = WORDS) -> Iterator[str]:
    """Paragraphs joined up to `words`; a longer one is cut with some words of overlap."""
    held: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        own = paragraph.split()
        if held and len(held) + len(own) > words:
            yield " ".join(held)
            held = []
        while len(held) + len(own) > words:
            yield " ".join(own[:words])
            own = own[words - OVERLAP :]
        held += own
    if held:
        yield " ".join(held)


def _cut_file(file: Path, words: int) -> Iterator[Chunk]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{file} is not UTF-8 text: save it as UTF-8, or leave it out") from None
    if file.suffix.lower() in (".json", ".jsonl"):
        text = "\n\n".join(_strings(file, text))
    for number, piece in enumerate(cut(text, words)):
        yield Chunk(piece, file.name, number)


def _strings(file: Path, text: str) -> Iterator[str]:
    """Every string of a JSON document, a paragraph for each object or list of strings."""
    lines = text.splitlines() if file.suffix.lower() == ".jsonl" else [text]
    for number, line in enumerate(filter(str.strip, lines), start=1):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(f"{file}:{number} is not JSON: {error}") from None
        yield from _walk(value, ())


def _walk(value: object, path: tuple[str, ...]) -> Iterator[str]:
    if isinstance(value, str):
        yield ". ".join((*path, value))
    elif isinstance(value, dict):
        plain = [
            f"{key}: {inner}" for key, inner in value.items() if not isinstance(inner, dict | list)
        ]
        if plain:
            yield ". ".join((*path, *plain))
        for key, inner in value.items():
            if isinstance(inner, dict | list):
                yield from _walk(inner, (*path, str(key)))
    elif isinstance(value, list):
        strings = [inner for inner in value if isinstance(inner, str)]
        if strings:
            yield ". ".join((*path, " ".join(strings)))
        for inner in value:
            if isinstance(inner, dict | list):
                yield from _walk(inner, path)
