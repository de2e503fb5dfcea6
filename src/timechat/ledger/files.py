"""Files that clients uploaded: who owns them, what they are called, and where their bytes lie.

Bytes lie in `folder` under the id that we gave, never under the client's name. What is in them is
for `stages.jobs.job`.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, and_, delete, func, insert, or_, select, update

from timechat.errors import LedgerError
from timechat.ledger.database import Ledger
from timechat.ledger.paging import read_page
from timechat.ledger.tables import files, new_id, now_ms, upload_parts, uploads

UPLOAD_MS = 60 * 60 * 1000
# What a project's files may take, unless the one who serves says otherwise.
PROJECT_BYTES = 16 << 30


class QuotaError(LedgerError):
    """A project's files would take more than it may have."""


@dataclass(frozen=True, slots=True)
class File:
    """One file of a project."""

    id: str
    project: str
    filename: str
    purpose: str
    bytes: int
    sha256: str
    created_ms: int
    expires_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that comes in parts. `file` is its id once it is whole, `keep_seconds` how long it
    is then kept (None: for good); the upload itself ends at `expires_ms`."""

    id: str
    project: str
    filename: str
    purpose: str
    bytes: int
    status: str
    file: str | None
    created_ms: int
    expires_ms: int
    keep_seconds: int | None = None


@dataclass(frozen=True)
class Files:
    """The files of a ledger; every call is one project's, and another's are not there.

    `most_bytes` is what a project may keep: whole files and what was announced of uploads.
    """

    ledger: Ledger
    folder: Path
    most_bytes: int = PROJECT_BYTES

    def path(self, file: str) -> Path:
        """Where the bytes of a file lie; `file` is one of our own ids."""
        return self.folder / f"{file}.jsonl"

    def keep(
        self,
        content: Path,
        sha256: str,
        project: str,
        filename: str,
        purpose: str,
        expires_ms: int | None = None,
        upload: str = "",
    ) -> File:
        """Take the finished file at `content` (on the same disk) in; the row comes last.

        It takes the place of the `upload` that it came by. Raises QuotaError.
        """
        size = content.stat().st_size
        file = File(new_id("file-"), project, filename, purpose, size, sha256, now_ms(), expires_ms)
        with self.ledger.write() as connection:
            self._check_room(connection, project, size, upload)
            self.enter(connection, content, file)
        return file

    def _check_room(
        self, connection: Connection, project: str, num_bytes: int, upload: str = ""
    ) -> None:
        """Raises QuotaError where the project has no room for so many bytes more."""
        coming = and_(
            uploads.c.project == project, uploads.c.status == "pending",
            uploads.c.expires_ms > now_ms(), uploads.c.id != upload,
        )  # fmt: skip
        held = 0
        for kind, theirs in ((files, _theirs(project)), (uploads, coming)):
            held += int(connection.scalar(select(func.sum(kind.c.bytes)).where(theirs)) or 0)
        if held + num_bytes > self.most_bytes:
            raise QuotaError(
                f"the files and uploads of this project take {held:,} bytes of"
                f" {self.most_bytes:,}, and this would be {num_bytes:,} more: delete some first"
            )

    def enter(self, connection: Connection, content: Path, file: File) -> None:
        """`keep` inside a transaction that does more, under an id that the caller gave."""
        os.replace(content, self.path(file.id))
        connection.execute(insert(files).values(**_row(file)))

    def get(self, project: str, file: str) -> File | None:
        with self.ledger.read() as connection:
            row = connection.execute(
                select(files).where(_theirs(project), files.c.id == file)
            ).first()
        return _file(row) if row is not None else None

    def page(
        self, project: str, after: str | None, limit: int, newest_first: bool, purpose: str | None
    ) -> tuple[list[File], bool] | None:
        """A page of the project's files, and whether more follow; None for an unknown `after`."""
        wanted = [_theirs(project)]
        if purpose is not None:
            wanted.append(files.c.purpose == purpose)
        page = read_page(self.ledger, files, wanted, after, limit, newest_first)
        return ([_file(row) for row in page[0]], page[1]) if page is not None else None

    def remove(self, project: str, file: str) -> bool:
        """Forget a file and its bytes; whether it was there."""
        with self.ledger.write() as connection:
            found = connection.execute(
                delete(files).where(_theirs(project), files.c.id == file)
            ).rowcount
        if found:
            self.path(file).unlink(missing_ok=True)
        return bool(found)

    def sweep(self) -> None:
        """Remove the bytes of expired files and uploads."""
        with self.ledger.write() as connection:
            old = list(connection.scalars(select(files.c.id).where(files.c.expires_ms <= now_ms())))
            connection.execute(delete(files).where(files.c.id.in_(old)))
            ended = and_(uploads.c.status == "pending", uploads.c.expires_ms <= now_ms())
            gone = list(connection.scalars(select(uploads.c.id).where(ended)))
            connection.execute(update(uploads).where(ended).values(status="expired"))
        for file in old:
            self.path(file).unlink(missing_ok=True)
        for upload in gone:
            shutil.rmtree(self.folder / upload, ignore_errors=True)

    def open_upload(
        self,
        project: str,
        filename: str,
        purpose: str,
        num_bytes: int,
        keep_seconds: int | None = None,
    ) -> Upload:
        """Begin an upload; its bytes are set aside. Raises QuotaError."""
        now = now_ms()
        made = Upload(
            new_id("upload_"), project, filename, purpose, num_bytes, "pending", None, now,
            now + UPLOAD_MS, keep_seconds,
        )  # fmt: skip
        with self.ledger.write() as connection:
            self._check_room(connection, project, num_bytes)
            connection.execute(insert(uploads).values(**_row(made)))
        (self.folder / made.id).mkdir()
        return made

    def get_upload(self, project: str, upload: str) -> Upload | None:
        with self.ledger.read() as connection:
            row = connection.execute(
                select(uploads).where(uploads.c.project == project, uploads.c.id == upload)
            ).first()
        return _upload(row) if row is not None else None

    def add_part(self, upload: Upload, content: Path) -> tuple[str, int]:
        """Keep one part; its id and when. The caller has checked that the upload is pending."""
        part, now = new_id("part_"), now_ms()
        size = content.stat().st_size
        os.replace(content, self.folder / upload.id / part)
        with self.ledger.write() as connection:
            connection.execute(
                insert(upload_parts).values(id=part, upload=upload.id, bytes=size, created_ms=now)
            )
        return part, now

    def parts(self, upload: Upload) -> dict[str, int]:
        """Id to bytes of the parts so far."""
        with self.ledger.read() as connection:
            rows = connection.execute(
                select(upload_parts).where(upload_parts.c.upload == upload.id)
            )
            return {row.id: row.bytes for row in rows}

    def part_path(self, upload: Upload, part: str) -> Path:
        return self.folder / upload.id / part

    def end_upload(self, upload: Upload, status: str, file: str | None = None) -> bool:
        """Complete or cancel a pending upload, once; whether this call did it."""
        pending = and_(uploads.c.id == upload.id, uploads.c.status == "pending")
        with self.ledger.write() as connection:
            done = connection.execute(
                update(uploads).where(pending).values(status=status, file=file)
            ).rowcount
        if done:
            shutil.rmtree(self.folder / upload.id, ignore_errors=True)
        return bool(done)


def open_files(ledger: Ledger, state: Path, most_bytes: int = PROJECT_BYTES) -> Files:
    folder = state / "files"
    folder.mkdir(parents=True, exist_ok=True)
    return Files(ledger, folder, most_bytes)


def _theirs(project: str) -> Any:
    living = or_(files.c.expires_ms.is_(None), files.c.expires_ms > now_ms())
    return and_(files.c.project == project, living)


def _row(record: File | Upload) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def _file(row: Any) -> File:
    return File(**{name: getattr(row, name) for name in File.__dataclass_fields__})


def _upload(row: Any) -> Upload:
    found = {name: getattr(row, name) for name in Upload.__dataclass_fields__}
    if found["status"] == "pending" and found["expires_ms"] <= now_ms():
        found["status"] = "expired"
    return Upload(**found)
