"""Every refusal in the shape that OpenAI's clients read, with the status they sort it by."""

from __future__ import annotations

import math
import re
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from timechat.engine.admission import BusyError
from timechat.engine.protocol import EngineError, SchemaError
from timechat.engine.responder import ContextTooLongError, UnsupportedError
from timechat.engine.scribe import MessageError
from timechat.errors import UserError
from timechat.ledger.files import QuotaError

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    409: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "overloaded",
}


_TYPE = re.compile(r"(?:constrained-)?(?:str|int|list|dict)(?:\[.*\])?")


class ApiError(Exception):
    """A refusal: HTTP status, message, and what OpenAI's error object carries beside it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else TYPES[400])
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        """Clients retry 409, 429 and 5xx by themselves unless they are told not to."""
        if self.retry_after_s is not None:
            return {
                "Retry-After": str(max(1, math.ceil(self.retry_after_s))),
                "x-should-retry": "true",
            }
        headers = {"x-should-retry": "false"} if self.status in (409, 429, 500) else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers

    @property
    def response(self) -> Response:
        return JSONResponse(self.body, self.status, self.headers)


def from_engine(error: Exception) -> ApiError:
    """What a responder raised, as HTTP."""
    match error:
        case ApiError():
            return error
        case ContextTooLongError():
            return ApiError(400, str(error), code="context_length_exceeded", param="messages")
        case UnsupportedError() | MessageError() | SchemaError():
            return ApiError(400, str(error), code="unsupported_value", param=error.param)
        case BusyError():
            return ApiError(
                429,
                str(error),
                code="rate_limit_exceeded",
                retry_after_s=error.retry_after_s,
            )
        case EngineError():
            return ApiError(503, str(error), code="engine_unavailable", retry_after_s=1.0)
        case QuotaError():
            return ApiError(400, str(error), code="storage_limit_exceeded", param="file")
        case UserError():
            return ApiError(400, str(error))
        case OperationalError() | InterfaceError() | PoolTimeoutError():
            return ApiError(
                503,
                "the database is out of reach for now",
                code="ledger_unavailable",
                retry_after_s=1.0,
            )
        case _:
            return ApiError(500, "the server failed to answer; its log says why")


def handle_errors(app: FastAPI) -> None:
    """Answer every exception of a route in the one shape."""

    async def refuse(_: Request, error: Exception) -> Response:
        return from_engine(error).response

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        given = request.headers.get("content-type", "")
        if error.errors()[0]["loc"] == ("body",) and "json" not in given.lower():
            said = f"send the body as application/json, not as {given[:80] or 'nothing'!r}"
            return ApiError(415, said, code="unsupported_media_type").response
        return from_validation(error).response

    async def plain(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = "unknown_url" if error.status_code == 404 else None
        refused = ApiError(error.status_code, str(error.detail), code=code)
        response = refused.response
        response.headers.update(error.headers or {})
        return response

    ledger = (OperationalError, InterfaceError, PoolTimeoutError)
    for kind in (ApiError, UserError, BusyError, EngineError, *ledger, Exception):
        app.add_exception_handler(kind, refuse)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, plain)


def from_validation(error: RequestValidationError) -> ApiError:
    """The first thing wrong with a body, named the way OpenAI names parameters."""
    first = error.errors()[0]
    place = [part for part in first["loc"] if part not in ("body", "query", "path")]
    # Where a field may be of several types, the one that was tried is no part of its name.
    place = [part for part in place if not (isinstance(part, str) and _TYPE.fullmatch(part))]
    param = ""
    for part in place:
        param += f"[{part}]" if isinstance(part, int) else f".{part}" if param else str(part)
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first.get('ctx', {}).get('error', '')}")
    return ApiError(
        400, f"{param or 'body'}: {first['msg']}", param=param or None, code="invalid_value"
    )
