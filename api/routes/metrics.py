"""Numbers for Prometheus, behind a service's key: they tell how business goes, and its scraper can send one."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from api.metrics import MEDIA_TYPE, Measures

router = APIRouter(tags=["health"])


@router.get("/metrics", response_class=PlainTextResponse)
def show(request: Request) -> Response:
    """Gauges of the rows and this process's requests, as Prometheus reads them."""
    measures = request.app.state.measures
    if not isinstance(measures, Measures):
        message = "the app is made by api.app.build"
        raise TypeError(message)
    return Response(measures.text(), media_type=MEDIA_TYPE)
