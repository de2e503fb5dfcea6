"""A run directory of plain files: atomic writes, append-only JSON lines, SHA-256.

It knows how to put bytes on a disk so that nothing half-written looks finished. What the files
mean is for their writers.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from timechat.errors import RunError


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
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(to_json(value), ensure_ascii=False, indent=2) + "\n")


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    write_text(path, "".join(_line(row) for row in rows))


def append_line(path: Path, row: Any) -> None:
    """Add one JSON line. A reader skips a torn last line (see `read_lines`)."""
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(row))


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


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable: fsync of the directory itself."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def build_folder(target: Path) -> Generator[Path]:
    """A folder that appears at `target` only when the block ends well.

    Yields a sibling to fill; renames it at the end, and removes it when the block raises.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield beside
        for file in beside.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        sync_folder(beside)
        os.chmod(beside, 0o755)
        if target.exists():
            shutil.rmtree(target)
        os.rename(beside, target)
        sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _line(row: Any) -> str:
    return json.dumps(to_json(row), ensure_ascii=False) + "\n"
