"""Prometheus metrics. They require a service's API key, since they show how the business is doing."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from api.metrics import METRICS_MEDIA_TYPE, HttpMetrics

router = APIRouter(tags=["health"])


@router.get("/metrics", response_class=PlainTextResponse)
def get_metrics(request: Request) -> Response:
    """Prometheus metrics: gauges from the database, and the requests of this process."""
    metrics = request.app.state.metrics
    if not isinstance(metrics, HttpMetrics):
        message = "the app must be created by api.app.build_app"
        raise TypeError(message)
    return Response(metrics.render(), media_type=METRICS_MEDIA_TYPE)
