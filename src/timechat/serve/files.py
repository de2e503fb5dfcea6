"""`/v1/files` and `/v1/uploads`: what clients bring to be trained on, and what jobs leave.

A file is streamed to the disk under an id of ours; the client's name is only ever shown. That every
line is a JSON object is asked at once; what else makes a row trainable is asked by the job.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, Form, Query, Request, UploadFile
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import FileResponse, Response

from timechat.ledger.files import File, Files, Upload
from timechat.ledger.tables import now_ms
from timechat.serve.errors import ApiError
from timechat.serve.gate import gate_of

router = APIRouter(tags=["files"])
MAX_FILE_BYTES = 512 << 20
MAX_PART_BYTES = 64 << 20
MAX_UPLOAD_BYTES = 8 << 30
MAX_LINE_BYTES = 16 << 20
CHUNK = 1 << 20
LIMITS = {"/v1/files": MAX_FILE_BYTES + (1 << 20), "/v1/uploads": MAX_PART_BYTES + (1 << 20)}
EXPIRY = re.compile(r"\d{1,9}")


@router.post("/v1/files")
def create_file(
    request: Request,
    file: UploadFile,
    purpose: Annotated[str, Form()],
    anchor: Annotated[str | None, Form(alias="expires_after[anchor]")] = None,
    seconds: Annotated[str | None, Form(alias="expires_after[seconds]")] = None,
) -> dict[str, Any]:
    """Take a file in, if every line of it is a JSON object."""
    files, project = _files(request)
    _check_purpose(purpose)
    expires_ms = _expiry(anchor, seconds)
    with tempfile.NamedTemporaryFile(dir=files.folder, prefix=".", delete=False) as beside:
        content = Path(beside.name)
        try:
            digest = _copy(file.file, beside.file, MAX_FILE_BYTES)  # type: ignore[arg-type]
            beside.flush()
            check_lines(content)
            kept = files.keep(
                content, digest, project, file.filename or "file", purpose, expires_ms
            )
        except BaseException:
            content.unlink(missing_ok=True)
            raise
    return file_row(kept)


@router.get("/v1/files")
def list_files(
    request: Request,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> dict[str, Any]:
    """The project's files, newest first."""
    files, project = _files(request)
    page = files.page(project, after, limit, order == "desc", purpose)
    if page is None:
        raise ApiError(400, f"no file {after!r} to go on after", param="after")
    return list_row([file_row(file) for file in page[0]], page[1])


@router.get("/v1/files/{file}")
def retrieve_file(file: str, request: Request) -> dict[str, Any]:
    return file_row(_file(request, file))


@router.get("/v1/files/{file}/content")
def file_content(file: str, request: Request) -> Response:
    """The bytes as they came."""
    found = _file(request, file)
    files, _ = _files(request)
    # Never shown by a browser as a page of ours, whatever is in it.
    return FileResponse(
        files.path(found.id),
        media_type="application/octet-stream",
        filename=found.filename,
        headers={"x-content-type-options": "nosniff"},
    )


@router.delete("/v1/files/{file}")
def delete_file(file: str, request: Request) -> dict[str, Any]:
    files, project = _files(request)
    if not files.remove(project, file):
        raise _absent("file", file)
    return {"id": file, "object": "file", "deleted": True}


class UploadRequest(BaseModel):
    """The body of `POST /v1/uploads`."""

    model_config = ConfigDict(extra="forbid")

    filename: Annotated[str, Field(min_length=1, max_length=1000)]
    bytes: Annotated[int, Field(ge=1, le=MAX_UPLOAD_BYTES)]
    mime_type: str
    purpose: str
    expires_after: dict[str, Any] | None = None


class CompleteRequest(BaseModel):
    """The body of `POST /v1/uploads/{id}/complete`."""

    model_config = ConfigDict(extra="forbid")

    part_ids: list[str]
    md5: str | None = None


@router.post("/v1/uploads")
def create_upload(body: UploadRequest, request: Request) -> dict[str, Any]:
    """Begin a file that comes in parts, within an hour."""
    files, project = _files(request)
    _check_purpose(body.purpose)
    return upload_row(files.open_upload(project, body.filename, body.purpose, body.bytes))


@router.post("/v1/uploads/{upload}/parts")
def add_upload_part(upload: str, request: Request, data: UploadFile) -> dict[str, Any]:
    files, _ = _files(request)
    found = _pending(request, upload)
    with tempfile.NamedTemporaryFile(dir=files.folder, prefix=".", delete=False) as beside:
        content = Path(beside.name)
        try:
            _copy(data.file, beside.file, MAX_PART_BYTES)  # type: ignore[arg-type]
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
    files, project = _files(request)
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
            kept = files.keep(content, sha.hexdigest(), project, found.filename, found.purpose)
        except BaseException:
            content.unlink(missing_ok=True)
            raise
    if not files.end_upload(found, "completed", kept.id):
        files.remove(project, kept.id)
        raise ApiError(400, "the upload is not pending any more")
    return upload_row(_upload(request, upload)) | {"file": file_row(kept)}


@router.post("/v1/uploads/{upload}/cancel")
def cancel_upload(upload: str, request: Request) -> dict[str, Any]:
    files, _ = _files(request)
    files.end_upload(_pending(request, upload), "cancelled")
    return upload_row(_upload(request, upload))


def check_lines(path: Path) -> None:
    """Raises ApiError 400 naming the first line that is no JSON object."""
    count = 0
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise _not_jsonl(number, f"is longer than {MAX_LINE_BYTES} bytes")
            if not line.strip():
                continue
            count += 1
            try:
                row: object = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError):
                raise _not_jsonl(number, "is not valid JSON") from None
            if not isinstance(row, dict):
                raise _not_jsonl(number, "is not a dictionary")
    if count == 0:
        raise ApiError(400, "The file is empty", code="invalid_file_format", param="file")


def file_row(file: File) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_ms // 1000,
        "expires_at": file.expires_ms // 1000 if file.expires_ms is not None else None,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


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


def list_row(rows: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """A page in the shape that clients go on from."""
    ends = {"first_id": rows[0]["id"], "last_id": rows[-1]["id"]} if rows else {}
    return {"object": "list", "data": rows, "has_more": has_more, **ends}


def _files(request: Request) -> tuple[Files, str]:
    return request.app.state.files, gate_of(request).caller.project


def _file(request: Request, file: str) -> File:
    files, project = _files(request)
    found = files.get(project, file)
    if found is None:
        raise _absent("file", file)
    return found


def _upload(request: Request, upload: str) -> Upload:
    files, project = _files(request)
    found = files.get_upload(project, upload)
    if found is None:
        raise _absent("upload", upload)
    return found


def _pending(request: Request, upload: str) -> Upload:
    found = _upload(request, upload)
    if found.status != "pending":
        raise ApiError(400, f"the upload is {found.status}, not pending")
    return found


def _absent(kind: str, name: str) -> ApiError:
    return ApiError(404, f"No such {kind} object: {name}", param="id", code="not_found")


def _check_purpose(purpose: str) -> None:
    if purpose != "fine-tune":
        raise ApiError(400, f"purpose {purpose!r}: only 'fine-tune' is served", param="purpose")


def _expiry(anchor: str | None, seconds: str | None) -> int | None:
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at" or not EXPIRY.fullmatch(seconds or ""):
        raise ApiError(
            400, "expires_after has anchor 'created_at' and seconds", param="expires_after"
        )
    count = int(seconds or 0)
    if not 3600 <= count <= 2_592_000:
        raise ApiError(
            400, f"expires_after: 3600 to 2592000 seconds, not {count}", param="expires_after"
        )
    return now_ms() + 1000 * count


def _copy(source: BinaryIO, target: BinaryIO, bound: int) -> str:
    """Copy in pieces; the SHA-256. Raises ApiError 413 beyond `bound` bytes."""
    digest, total = hashlib.sha256(), 0
    while chunk := source.read(CHUNK):
        total += len(chunk)
        if total > bound:
            raise ApiError(413, f"larger than {bound} bytes", code="file_too_large", param="file")
        digest.update(chunk)
        target.write(chunk)
    return digest.hexdigest()


def _not_jsonl(number: int, what: str) -> ApiError:
    return ApiError(
        400,
        "Expected file to have JSONL format, where every line is a JSON dictionary. "
        f"Line {number} {what}",
        code="invalid_file_format",
        param="file",
    )
