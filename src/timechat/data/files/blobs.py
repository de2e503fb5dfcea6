"""Files as streams of bytes: plain, gzip, zstd, or a member of a zip archive.

What unpacks to far more than it was is refused while it is read, so a bomb costs a bounded time and
no memory. Only formats that are read back and forth (Parquet, Arrow, Excel, a zip archive that is
packed itself) are unpacked to disk, bounded and for as long as they are read. What the bytes mean
is `containers`'.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import zstandard

from timechat.errors import DataError

# A packed file may unpack to this much whatever its size; beyond it, to this many times its size.
BOMB_BYTES = 1 << 30
BOMB_RATIO = 200
MAX_MEMBERS = 100_000
# What may lie unpacked on disk of one packed file.
COPY_BYTES = 4 << 30
GZIP, ZSTD, ZIP = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04"
# Windows of 128 MiB are the largest that the zstd tool itself reads without being asked.
ZSTD_WINDOW = 1 << 27


class Copy:
    """A file of unpacked bytes that is removed when nothing refers to this any more."""

    def __init__(self, suffix: str) -> None:
        handle, name = tempfile.mkstemp(prefix="timechat-", suffix=suffix)
        os.close(handle)
        self.path = Path(name)
        weakref.finalize(self, self.path.unlink, missing_ok=True)


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes that can be opened again and again. `name` is what the user calls them."""

    name: str
    path: Path
    member: str = ""
    copy: Copy | None = field(default=None, compare=False)

    @property
    def place(self) -> Path:
        """Where its bytes are: the user's file, or a copy of what is packed in it."""
        return self.path if self.copy is None else self.copy.path

    @property
    def file_name(self) -> str:
        """The last part of the name, without `.gz` and `.zst`: what tells the kind of the file."""
        last = PurePosixPath(self.member or self.path.name).name
        low = last.lower()
        return last[: low.rindex(".")] if low.endswith((".gz", ".zst")) else last

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.file_name).suffix.lower()


def blob_of(path: Path) -> Blob:
    """The file at `path` under its own name."""
    return Blob(str(path), path)


@contextmanager
def open_blob(blob: Blob) -> Generator[BinaryIO]:
    """The unpacked bytes. Raises DataError when they cannot be read, or unpack without end."""
    try:
        with _open_packed(blob) as (packed, size):
            head = packed.peek(4)[:4]
            if head.startswith(GZIP):
                raw: Any = gzip.GzipFile(fileobj=packed)
            elif head == ZSTD:
                reader = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
                raw = reader.stream_reader(packed, read_across_frames=True)
            elif blob.member:
                raw = packed
            else:
                yield cast(BinaryIO, packed)
                return
            yield cast(BinaryIO, io.BufferedReader(_Guarded(raw, blob.name, size), 1 << 16))
    except FileNotFoundError:
        raise DataError(f"no file at {blob.name}: check the path") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, zstandard.ZstdError) as error:
        raise DataError(f"{blob.name} is damaged or cut off: {error}; fetch it again") from None
    except gzip.BadGzipFile as error:
        raise DataError(f"{blob.name} is damaged: {error}; fetch it again") from None
    except OSError as error:
        why = error.strerror or str(error)
        raise DataError(f"{blob.name} cannot be read: {why}") from None


def on_disk(blob: Blob) -> Blob:
    """`blob` as a file that can be read back and forth: itself where it is one, else a copy.

    Raises DataError when it unpacks to more than `COPY_BYTES`, or the disk is full.
    """
    with _open_packed(blob) as (packed, _):
        head = packed.peek(4)[:4]
    if not (blob.member or head.startswith(GZIP) or head == ZSTD):
        return blob
    copy = Copy(blob.suffix)
    size = 0
    with open_blob(blob) as stream, copy.path.open("wb") as file:
        while piece := stream.read(1 << 20):
            size += len(piece)
            if size > COPY_BYTES:
                raise DataError(
                    f"{blob.name} unpacks to more than {COPY_BYTES:,} bytes: unpack it by hand"
                )
            try:
                file.write(piece)
                file.flush()
            except OSError as error:
                raise DataError(
                    f"{blob.name} cannot be unpacked into {copy.path.parent}: {error.strerror}; "
                    "set TMPDIR to a folder with room, or unpack it by hand"
                ) from None
    return replace(blob, member="", copy=copy)


def read_head(blob: Blob, size: int) -> bytes:
    """The first `size` bytes, unpacked."""
    with open_blob(blob) as stream:
        return stream.read(size)


def list_members(blob: Blob) -> list[str]:
    """The files in a zip archive. Raises DataError for one that no honest tool packs."""
    try:
        with zipfile.ZipFile(blob.place) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise DataError(f"{blob.name} is a damaged zip archive: {error}") from None
    if len(infos) > MAX_MEMBERS:
        raise DataError(f"{blob.name} holds {len(infos):,} files, at most {MAX_MEMBERS:,} are read")
    for info in infos:
        if why := _unfit(info):
            raise DataError(f"{blob.name} holds {info.filename[:80]!r}, {why}: it is not read")
    names = [info.filename for info in infos if not info.is_dir()]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{blob.name} holds {twice!r} twice: pack it again")
    return sorted(names)


def _unfit(info: zipfile.ZipInfo) -> str:
    """Why a member is refused, or nothing."""
    path = PurePosixPath(info.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1]):
        return "a path that leads out of the archive"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "a link"
    if info.flag_bits & 1:
        return "encrypted"
    return ""


@contextmanager
def _open_packed(blob: Blob) -> Generator[tuple[io.BufferedReader, int]]:
    """The bytes as they are stored, and how many there are on disk."""
    if not blob.member:
        with blob.place.open("rb") as file:
            yield file, blob.place.stat().st_size
        return
    with zipfile.ZipFile(blob.place) as archive:
        info = archive.getinfo(blob.member)
        with archive.open(info) as inner:
            guarded = _Guarded(inner, blob.name, info.compress_size)
            yield io.BufferedReader(guarded, 1 << 16), max(1, info.compress_size)


class _Guarded(io.RawIOBase):
    """Passes bytes on and counts them, so that a bomb is noticed when it goes off."""

    def __init__(self, inner: Any, name: str, size: int) -> None:
        super().__init__()
        self._inner = inner
        self._name = name
        self._limit = max(BOMB_BYTES, BOMB_RATIO * size)
        self._size = size
        self._given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._inner.read(len(buffer))
        self._given += len(piece)
        if self._given > self._limit:
            raise DataError(
                f"{self._name} unpacks to more than {self._limit:,} bytes from {self._size:,}: "
                "a bomb, or a file to be unpacked by hand first"
            )
        buffer[: len(piece)] = piece
        return len(piece)
