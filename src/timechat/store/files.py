"""Plain files: atomic writes, append-only JSON lines, SHA-256.

A reader sees the old content or the new, never a part. What the files mean is for their writers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from timechat.errors import RunError
from timechat.store.claims import claim_beside


def to_json(value: Any) -> Any:
    """`value` with dataclasses as mappings, paths as strings and sets sorted."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_json(asdict(value))
    if isinstance(value, dict):
        return {str(key): to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    return value


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside, handle = claim_beside(path, is_folder=False)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(to_json(value), ensure_ascii=False, indent=2) + "\n")


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    write_text(path, "".join(_line(row) for row in rows))


def append_rows(path: Path, rows: Iterable[Any]) -> None:
    """Add JSON lines one by one, however many there are, in a folder that is still being built."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(map(_line, rows))


def append_line(path: Path, row: Any) -> None:
    """Add one JSON line, in place of a last line that a killed process or a full disk tore."""
    with path.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        if end and file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(_line(row).encode("utf-8"))


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} is missing") from None
    except ValueError as error:
        raise RunError(f"{path} is not readable JSON: {error}") from None


def read_lines(path: Path) -> Iterator[Any]:
    """The rows of our own JSON lines file; a last line without its newline was torn and is left."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Make the file's content durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable: fsync of the directory itself."""
    sync_file(folder)


def _line(row: Any) -> str:
    return json.dumps(to_json(row), ensure_ascii=False) + "\n"
