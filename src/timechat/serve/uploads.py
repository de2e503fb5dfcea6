"""`/v1/uploads`: a file that comes in parts, and is a file like any other once it is whole."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Request, UploadFile
from pydantic import BaseModel, ConfigDict, Field

from timechat.ledger.files import Upload
from timechat.serve.errors import ApiError
from timechat.serve.files import (
    absent,
    check_expiry,
    check_purpose,
    expiry_of,
    file_row,
    files_of,
)
from timechat.serve.receive import CHUNK, check_lines, copy_bounded

router = APIRouter(tags=["files"])
MAX_PART_BYTES = 64 << 20
MAX_UPLOAD_BYTES = 8 << 30


class Expiry(BaseModel):
    """How long the file is kept, counted from when it is whole."""

    model_config = ConfigDict(extra="forbid")

    anchor: str
    seconds: int


class UploadRequest(BaseModel):
    """The body of `POST /v1/uploads`."""

    model_config = ConfigDict(extra="forbid")

    filename: Annotated[str, Field(min_length=1, max_length=1000)]
    bytes: Annotated[int, Field(ge=1, le=MAX_UPLOAD_BYTES)]
    mime_type: str
    purpose: str
    expires_after: Expiry | None = None


class CompleteRequest(BaseModel):
    """The body of `POST /v1/uploads/{id}/complete`."""

    model_config = ConfigDict(extra="forbid")

    part_ids: list[str]
    md5: str | None = None


@router.post("/v1/uploads")
def create_upload(body: UploadRequest, request: Request) -> dict[str, Any]:
    """Begin a file that comes in parts, within an hour."""
    files, project = files_of(request)
    check_purpose(body.purpose)
    wanted = body.expires_after
    keep_seconds = check_expiry(wanted.anchor, str(wanted.seconds)) if wanted else None
    made = files.open_upload(project, body.filename, body.purpose, body.bytes, keep_seconds)
    return upload_row(made)


@router.post("/v1/uploads/{upload}/parts")
def add_upload_part(upload: str, request: Request, data: UploadFile) -> dict[str, Any]:
    files, _ = files_of(request)
    found = _pending(request, upload)
    with tempfile.NamedTemporaryFile(dir=files.folder, prefix=".", delete=False) as beside:
        content = Path(beside.name)
        try:
            copy_bounded(data.file, beside.file, MAX_PART_BYTES)  # type: ignore[arg-type]
            beside.flush()
            so_far = sum(files.parts(found).values())
            if so_far + content.stat().st_size > found.bytes:
                raise ApiError(400, f"the parts are more than the {found.bytes} bytes announced")
            part, when = files.add_part(found, content)
        except BaseException:
            content.unlink(missing_ok=True)
            raise
    return {
        "id": part, "object": "upload.part", "created_at": when // 1000, "upload_id": found.id
    }  # fmt: skip


@router.post("/v1/uploads/{upload}/complete")
def complete_upload(upload: str, body: CompleteRequest, request: Request) -> dict[str, Any]:
    """Put the parts together in the order given; the result is a file like any other."""
    files, project = files_of(request)
    found = _pending(request, upload)
    parts = files.parts(found)
    for part in body.part_ids:
        if part not in parts:
            raise ApiError(400, f"no part {part!r} in this upload", param="part_ids")
    total = sum(parts[part] for part in body.part_ids)
    if total != found.bytes:
        raise ApiError(400, f"the parts are {total} bytes, not the {found.bytes} announced")
    sha, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with tempfile.NamedTemporaryFile(dir=files.folder, prefix=".", delete=False) as beside:
        content = Path(beside.name)
        try:
            for part in body.part_ids:
                with files.part_path(found, part).open("rb") as piece:
                    while chunk := piece.read(CHUNK):
                        sha.update(chunk)
                        md5.update(chunk)
                        beside.write(chunk)
            beside.flush()
            if body.md5 is not None and body.md5.lower() != md5.hexdigest():
                raise ApiError(400, "the bytes do not have that MD5 sum", param="md5")
            check_lines(content)
            expires_ms = expiry_of(found.keep_seconds)
            kept = files.keep(
                content, sha.hexdigest(), project, found.filename, found.purpose, expires_ms,
                found.id,
            )  # fmt: skip
        except BaseException:
            content.unlink(missing_ok=True)
            raise
    if not files.end_upload(found, "completed", kept.id):
        files.remove(project, kept.id)
        raise ApiError(400, "the upload is not pending any more")
    return upload_row(_upload(request, upload)) | {"file": file_row(kept)}


@router.post("/v1/uploads/{upload}/cancel")
def cancel_upload(upload: str, request: Request) -> dict[str, Any]:
    files, _ = files_of(request)
    files.end_upload(_pending(request, upload), "cancelled")
    return upload_row(_upload(request, upload))


def upload_row(upload: Upload) -> dict[str, Any]:
    return {
        "id": upload.id,
        "object": "upload",
        "bytes": upload.bytes,
        "created_at": upload.created_ms // 1000,
        "expires_at": upload.expires_ms // 1000,
        "filename": upload.filename,
        "purpose": upload.purpose,
        "status": upload.status,
        "file": None,
    }


def _upload(request: Request, upload: str) -> Upload:
    files, project = files_of(request)
    found = files.get_upload(project, upload)
    if found is None:
        raise absent("upload", upload)
    return found


def _pending(request: Request, upload: str) -> Upload:
    found = _upload(request, upload)
    if found.status != "pending":
        raise ApiError(400, f"the upload is {found.status}, not pending")
    return found
