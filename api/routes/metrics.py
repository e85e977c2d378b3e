"""Numbers for Prometheus, behind a service's key: they tell how business goes, and its scraper can send one."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from api.metrics import METRICS_MEDIA_TYPE, HttpMetrics

router = APIRouter(tags=["health"])


@router.get("/metrics", response_class=PlainTextResponse)
def get_metrics(request: Request) -> Response:
    """Gauges of the rows and this process's requests, as Prometheus reads them."""
    metrics = request.app.state.metrics
    if not isinstance(metrics, HttpMetrics):
        message = "the app is made by api.app.build"
        raise TypeError(message)
    return Response(metrics.render(), media_type=METRICS_MEDIA_TYPE)
