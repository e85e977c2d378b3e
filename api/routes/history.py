"""The history of one organization: every change, what was sent to which provider, and what came of it."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Final

from fastapi import APIRouter, Query
from pydantic import BaseModel, BeforeValidator, Field, JsonValue
from starlette.concurrency import run_in_threadpool

from api import problems
from api.context import ApiContext, ContextDep
from api.routing import ApiRoute
from api.schemas.requests import OrgId, TimeInRequest
from core.ports.spec import Provider
from core.reporting import history
from core.reporting.history import HistoryEntry, PastState, Subject

router = APIRouter(tags=["sync"], route_class=ApiRoute)

_NUMBER: Final = re.compile(r"[+-]?[\d.]*")


def _refuse_number(value: object) -> object:
    """pydantic takes a number for the seconds since 1970, and the document says that there are only times."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        message = "give a time such as 2026-11-01T12:00:00Z"
        raise ValueError(message)
    return value


Time = Annotated[TimeInRequest, BeforeValidator(_refuse_number)]
LimitQuery = Annotated[int, Query(ge=1, le=history.MAX_ENTRIES, description="Maximum number of entries.")]
BeforeQuery = Annotated[Time | None, Query(description="Only what happened before; for the next page.")]
AtQuery = Annotated[Time | None, Query(description="Plan, status and links as they were then, in `past`.")]


class HistoryItem(BaseModel):
    """``details``: ids, codes, plans and statuses; no names and no addresses."""

    at: datetime
    subject: Subject
    kind: str = Field(examples=["organization.plan_changed"])
    provider: Provider | None
    by: str | None = Field(examples=["usr_1 (api)"])
    details: dict[str, JsonValue]


class PastLinkState(BaseModel):
    """What the last sync attempt before that time left."""

    as_of: datetime
    outcome: str | None
    state: str | None
    customer_id: str | None
    subscription_id: str | None
    plan_code: str | None
    next_plan_code: str | None


class PastOrganization(BaseModel):
    at: datetime
    plan_tier: str
    pending_plan_tier: str | None
    status: str
    links: dict[Provider, PastLinkState | None]


class HistoryResponse(BaseModel):
    """Newest first. ``past`` null: no ``at`` was given, or the organization did not exist then."""

    org_id: str
    entries: list[HistoryItem]
    past: PastOrganization | None


@router.get("/api/organizations/{org_id}/history")
async def get_history(
    *, org_id: OrgId, context: ContextDep, limit: LimitQuery = 50, before: BeforeQuery = None, at: AtQuery = None
) -> HistoryResponse:
    """Every change, what was sent to which provider with its request id, and what came of it. For services only: the
    providers' messages may name ids of other organizations.
    """
    return await run_in_threadpool(_read, context, org_id, limit, before, at)


def _read(
    context: ApiContext, org_id: str, limit: int, before: datetime | None, at: datetime | None
) -> HistoryResponse:
    with context.database.read() as session:
        if not history.exists(session, org_id):
            raise problems.organization_not_found()
        found = history.entries(session, org_id, limit, before)
        past = history.state_at(session, org_id, at) if at is not None else None
    return HistoryResponse(org_id=org_id, entries=[_item(each) for each in found], past=_past(past))


def _item(entry: HistoryEntry) -> HistoryItem:
    return HistoryItem.model_validate(entry, from_attributes=True)


def _past(state: PastState | None) -> PastOrganization | None:
    return None if state is None else PastOrganization.model_validate(state, from_attributes=True)
