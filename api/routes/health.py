"""Liveness and readiness, for load balancers and monitoring."""

from __future__ import annotations

from typing import Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from pydantic import BaseModel

from api import problems
from api.context import ContextDep
from api.routing import ApiRoute, probe_threads

router = APIRouter(tags=["health"], route_class=ApiRoute)


class Health(BaseModel):
    status: Literal["ok"] = "ok"


@router.get("/healthz")
async def get_liveness() -> Health:
    """The process responds; checks nothing else."""
    return Health()


@router.get("/readyz")
async def get_readiness(request: Request, context: ContextDep) -> Health:
    """The database responds and has this version's schema."""
    if not await run_sync(context.database.is_schema_current, limiter=probe_threads(request)):
        detail = "The database schema is of another version. Run `billing-sync db upgrade`."
        raise problems.unavailable(detail)
    return Health()
