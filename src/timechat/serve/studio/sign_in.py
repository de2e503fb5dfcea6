"""Signing in to the pages: a browser cannot send a header by itself, so its key becomes a cookie.

The cookie is for this site alone (SameSite=Strict) and out of reach of scripts (HttpOnly). Without
it a page is refused like any other request, with 401; the refusal's body is the form.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from timechat.serve.keys import COOKIE, Keys
from timechat.serve.studio.pages import HEADERS, STATIC

router = APIRouter(include_in_schema=False)

PATH = "/studio/sign-in"
MAX_FORM_BYTES = 4096


def form_response() -> Response:
    """The form, as the 401 that it is."""
    text = (STATIC / "sign-in.html").read_text(encoding="utf-8")
    return HTMLResponse(text, 401, headers=HEADERS)


@router.post(PATH)
async def sign_in(request: Request) -> Response:
    """Check the key and keep it in the browser; a wrong one gets the form again."""
    body = await request.body()
    fields: dict[str, Any] = parse_qs(body[:MAX_FORM_BYTES].decode("utf-8", "replace"))
    key = fields.get("key", [""])[0].strip()
    keys: Keys = request.app.state.keys
    if keys.find(key) is None:
        return form_response()
    response = RedirectResponse("/", 303)
    is_https = request.url.scheme == "https"
    response.set_cookie(COOKIE, key, httponly=True, samesite="strict", secure=is_https)
    return response
