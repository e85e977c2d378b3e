"""Liveness and readiness, for load balancers and monitoring."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from api import problems
from api.context import ContextDep

router = APIRouter(tags=["health"])


class Health(BaseModel):
    status: Literal["ok"] = "ok"


@router.get("/healthz")
async def get_liveness() -> Health:
    """The process responds; checks nothing else."""
    return Health()


@router.get("/readyz")
def get_readiness(context: ContextDep) -> Health:
    """The database responds and has this version's schema."""
    if not context.database.is_schema_current():
        detail = "The database schema is of another version. Run `billing-sync db upgrade`."
        raise problems.unavailable(detail)
    return Health()
