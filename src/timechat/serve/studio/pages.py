"""The pages' files, under a content security policy that lets nothing in but this server's own.

Pages are static: what a person or a model wrote comes as JSON and becomes text nodes, so no answer
can become markup, and an open page costs the server nothing.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, Response

from timechat.serve.errors import ApiError

router = APIRouter(include_in_schema=False)

STATIC = Path(__file__).parent / "static"
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


def send_page(name: str) -> Response:
    path = STATIC / name
    return FileResponse(path, headers=HEADERS, media_type=f"{KINDS[path.suffix]}; charset=utf-8")


@router.get("/")
def chat_page() -> Response:
    return send_page("index.html")


@router.get("/queue")
def queue_page() -> Response:
    return send_page("queue.html")


@router.get("/runs")
def runs_page() -> Response:
    return send_page("runs.html")


@router.get("/studio/static/{name}")
def static_file(name: str) -> Response:
    """A file of the pages: only a name that the folder lists, so no path can lead out of it."""
    if name not in {path.name for path in STATIC.iterdir()}:
        raise ApiError(404, f"no file {name!r} here")
    return send_page(name)
