"""`/metrics`: what a scraper wants to know, under OpenTelemetry's GenAI names."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from timechat.engine.local import LocalResponder
from timechat.engine.protocol import Ending
from timechat.engine.responder import Piece
from timechat.errors import UserError
from timechat.serve.registry import Registry, Served

router = APIRouter(tags=["metrics"])

OF_PROJECTS = "ft:*"
_FIRST = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_BETWEEN = (0.005, 0.01, 0.02, 0.04, 0.07, 0.1, 0.2, 0.5, 1.0)
_WHOLE = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """The figures of one app; nothing about what was said or by whom."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        model = ("gen_ai_request_model",)
        self.first = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            model,
            buckets=_FIRST,
            registry=self.registry,
        )
        self.between = Histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Between one piece of an answer and the next.",
            model,
            buckets=_BETWEEN,
            registry=self.registry,
        )
        self.whole = Histogram(
            "gen_ai_server_request_duration_seconds",
            "A whole answer.",
            model,
            buckets=_WHOLE,
            registry=self.registry,
        )
        self.tokens = Counter(
            "gen_ai_client_token_usage",
            "Tokens read and said.",
            (*model, "gen_ai_token_type"),
            registry=self.registry,
        )
        self.answers = Counter(
            "timechat_answers", "Answers by how they ended.", (*model, "ending"),
            registry=self.registry,
        )  # fmt: skip
        self.running = Gauge(
            "timechat_requests_running", "Answers running now.", model, registry=self.registry
        )
        self.waiting = Gauge(
            "timechat_requests_waiting", "Requests in the queue.", model, registry=self.registry
        )
        self.computing = Gauge(
            "timechat_engine_running", "Requests that hold compute.", model, registry=self.registry
        )
        self.kv = Gauge(
            "timechat_kv_tokens_held", "Tokens admitted.", model, registry=self.registry
        )

    async def timed(self, model: Served, answer: AsyncGenerator[Piece]) -> AsyncGenerator[Piece]:
        """`answer`, with its times and tokens counted."""
        label = label_of(model)
        started = last = time.perf_counter()
        ending = "refused"
        seen: Piece | None = None
        spoken = False
        try:
            async with aclosing(answer):
                async for piece in answer:
                    now = time.perf_counter()
                    if seen is None:
                        ending = Ending.CANCELLED.value  # unless another comes
                    if piece.text and not spoken:
                        self.first.labels(label).observe(now - started)
                    elif piece.text:
                        self.between.labels(label).observe(now - last)
                    spoken, last, seen = spoken or bool(piece.text), now, piece
                    if piece.ending is not None:
                        ending = piece.ending.value
                    yield piece
        except UserError:
            ending = "refused"  # it may show only while it is answered
            raise
        finally:
            self.answers.labels(label, ending).inc()
            self.whole.labels(label).observe(time.perf_counter() - started)
            if seen is not None:
                self.tokens.labels(label, "input").inc(seen.usage.prompt)
                self.tokens.labels(label, "output").inc(seen.usage.completion)

    def render(self, models: Registry) -> bytes:
        for gauge in (self.running, self.waiting, self.computing, self.kv):
            gauge.clear()  # of models that have left
        totals: dict[tuple[Gauge, str], int] = {}
        for model in models:
            if isinstance(model.responder, LocalResponder):
                admission = model.responder.admission
                for gauge, figure in (
                    (self.running, admission.running),
                    (self.waiting, admission.waiting),
                    (self.computing, model.responder.engine.running),
                    (self.kv, admission.held),
                ):
                    place = gauge, label_of(model)
                    totals[place] = totals.get(place, 0) + figure
        for (gauge, label), figure in totals.items():
            gauge.labels(label).set(figure)
        return generate_latest(self.registry)


def label_of(model: Served) -> str:
    """The model's name; those of a project are counted together, since every key reads this."""
    return model.name if model.project is None else OF_PROJECTS


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses={200: {"description": "Prometheus' text format.", "content": {"text/plain": {}}}},
)
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    counted: Metrics = request.app.state.metrics
    content = counted.render(request.app.state.registry)
    return Response(content, media_type=CONTENT_TYPE_LATEST)
