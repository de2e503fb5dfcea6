"""Putting the studio on an app."""

from __future__ import annotations

from fastapi import FastAPI

from timechat.ledger.database import Ledger
from timechat.serve.studio import chats, labels, learning, models, pages, runs, sign_in
from timechat.serve.studio.desk import Desk
from timechat.serve.studio.earlier import Earlier


def mount_studio(app: FastAPI, ledger: Ledger) -> None:
    """Add the pages and their routes; `ledger` keeps the conversations."""
    app.state.desk = Desk(ledger, Earlier(app.state.registry))
    for room in (pages, sign_in, models, chats, labels, learning, runs):
        app.include_router(room.router)
