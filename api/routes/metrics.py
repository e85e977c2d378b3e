"""Prometheus metrics. They require a service's API key, since they show how the business is doing."""

from __future__ import annotations

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from api.metrics import METRICS_MEDIA_TYPE, HttpMetrics
from api.routing import ApiRoute, threads_of

router = APIRouter(tags=["health"], route_class=ApiRoute)


@router.get("/metrics", response_class=PlainTextResponse)
async def get_metrics(request: Request) -> Response:
    """Prometheus metrics: gauges from the database, and the requests of this process."""
    metrics = request.app.state.metrics
    if not isinstance(metrics, HttpMetrics):
        message = "the app must be created by api.app.build_app"
        raise TypeError(message)
    return Response(await run_sync(metrics.render, limiter=threads_of(request)), media_type=METRICS_MEDIA_TYPE)
