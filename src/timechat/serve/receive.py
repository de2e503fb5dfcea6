"""Bytes on their way in: copied within a bound, and looked at line by line.

That every line is a JSON object is asked here; what else makes a row trainable is asked by the job.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import BinaryIO

from timechat.serve.errors import ApiError

MAX_LINE_BYTES = 16 << 20
CHUNK = 1 << 20


def copy_bounded(source: BinaryIO, target: BinaryIO, bound: int) -> str:
    """Copy in pieces; the SHA-256. Raises ApiError 413 beyond `bound` bytes."""
    digest, total = hashlib.sha256(), 0
    while chunk := source.read(CHUNK):
        total += len(chunk)
        if total > bound:
            raise ApiError(413, f"larger than {bound} bytes", code="file_too_large", param="file")
        digest.update(chunk)
        target.write(chunk)
    return digest.hexdigest()


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


def _not_jsonl(number: int, what: str) -> ApiError:
    return ApiError(
        400,
        "Expected file to have JSONL format, where every line is a JSON dictionary. "
        f"Line {number} {what}",
        code="invalid_file_format",
        param="file",
    )
