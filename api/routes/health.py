"""Liveness and readiness, for load balancers and monitoring."""

from __future__ import annotations

from typing import Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from pydantic import BaseModel

from api import problems
from api.context import ContextDep
from api.routing import ApiRoute, threads_of

router = APIRouter(tags=["health"], route_class=ApiRoute)


class Health(BaseModel):
    status: Literal["ok"] = "ok"


@router.get("/healthz")
async def get_liveness() -> Health:
    """The process responds; checks nothing else."""
    return Health()


@router.get("/readyz")
async def get_readiness(request: Request, context: ContextDep) -> Health:
    """The database responds and has a schema on which this version may run."""
    state = await run_sync(context.database.schema_state, limiter=threads_of(request))
    if not state.is_usable:
        detail = (
            "The database schema is of a newer version. Install it here: `pip install --upgrade billing-sync`."
            if state.is_newer
            else "The database schema is of another version. Run `billing-sync db upgrade`."
        )
        raise problems.unavailable(detail)
    return Health()
