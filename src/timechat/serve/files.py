"""`/v1/files`: what clients bring to be trained on, and what jobs leave.

A file is kept under an id of ours; the client's name is only ever shown. How bytes come in is for
`receive`, files in parts for `uploads`.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Query, Request, UploadFile
from starlette.responses import FileResponse, Response

from timechat.ledger.files import File, Files
from timechat.ledger.tables import now_ms
from timechat.serve.errors import ApiError
from timechat.serve.gate import gate_of
from timechat.serve.receive import check_lines, copy_bounded

router = APIRouter(tags=["files"])
MAX_FILE_BYTES = 512 << 20
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
    files, project = files_of(request)
    check_purpose(purpose)
    keep_seconds = check_expiry(anchor, seconds)
    expires_ms = expiry_of(keep_seconds)
    with tempfile.NamedTemporaryFile(dir=files.folder, prefix=".", delete=False) as beside:
        content = Path(beside.name)
        try:
            digest = copy_bounded(file.file, beside.file, MAX_FILE_BYTES)  # type: ignore[arg-type]
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
    files, project = files_of(request)
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
    files, _ = files_of(request)
    # Never shown by a browser as a page of ours, whatever is in it.
    return FileResponse(
        files.path(found.id),
        media_type="application/octet-stream",
        filename=found.filename,
        headers={"x-content-type-options": "nosniff"},
    )


@router.delete("/v1/files/{file}")
def delete_file(file: str, request: Request) -> dict[str, Any]:
    files, project = files_of(request)
    if not files.remove(project, file):
        raise absent("file", file)
    return {"id": file, "object": "file", "deleted": True}


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


def list_row(rows: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """A page in the shape that clients go on from."""
    ends = {"first_id": rows[0]["id"], "last_id": rows[-1]["id"]} if rows else {}
    return {"object": "list", "data": rows, "has_more": has_more, **ends}


def files_of(request: Request) -> tuple[Files, str]:
    return request.app.state.files, gate_of(request).caller.project


def _file(request: Request, file: str) -> File:
    files, project = files_of(request)
    found = files.get(project, file)
    if found is None:
        raise absent("file", file)
    return found


def absent(kind: str, name: str) -> ApiError:
    return ApiError(404, f"No such {kind} object: {name}", param="id", code="not_found")


def check_purpose(purpose: str) -> None:
    if purpose != "fine-tune":
        raise ApiError(400, f"purpose {purpose!r}: only 'fine-tune' is served", param="purpose")


def check_expiry(anchor: str | None, seconds: str | None) -> int | None:
    """For how many seconds a file is kept; None for good. Raises ApiError."""
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
    return count


def expiry_of(keep_seconds: int | None) -> int | None:
    """When a file that is made now goes."""
    return None if keep_seconds is None else now_ms() + 1000 * keep_seconds
