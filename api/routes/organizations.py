"""Organizations: made, found, changed. Each change answers with the number under which its receipt is asked for."""

from __future__ import annotations

import base64
import json
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Response

from api import problems
from api.auth.authorization import Admission, TheAdmission
from api.context import TheRuntime
from api.schemas import responses
from api.schemas.requests import (
    CustomerIds,
    Details,
    Limit,
    NewOrganization,
    OrgId,
    Plan,
    Search,
    UserIdInPath,
    WantedPlan,
    WantedStatus,
)
from api.schemas.responses import Changed, Choices, Created, Organizations, OrganizationsPage, PlanChanged, Sync
from api.unit_of_work import IdempotencyKey, TheWriter, open_organization
from core.catalog.plans import Catalog
from core.db.models.organizations import Organization
from core.events.event_types import Change
from core.organizations import commands, memberships, plan_changes, provider_ids, queries
from core.organizations.queries import Cursor, Wanted
from core.organizations.validation import ID_PATTERN

router = APIRouter(tags=["organizations"])

PageCursor = Annotated[str | None, Query(max_length=300, description="`next_cursor` of the page before.")]


@router.post("/api/organizations", status_code=201, response_model=Created)
def create(
    body: NewOrganization, writer: TheWriter, admission: TheAdmission, runtime: TheRuntime, key: IdempotencyKey = None
) -> Response:
    """Make an organization; the person who asks becomes its owner."""
    return writer.once(key, body, 201, lambda change: make(change, body, admission, runtime.catalog))


def make(change: Change, body: NewOrganization, admission: Admission, catalog: Catalog) -> Created:
    if admission.user_id is not None and body.owner_user_id not in {None, admission.user_id}:
        detail = "only a service names another owner"
        raise problems.unprocessable("body.owner_user_id", detail)
    new = commands.NewOrganization(
        name=body.name, plan_tier=body.plan_tier, billing_email=body.billing_email, currency=body.currency
    )
    organization = commands.create(change, new, catalog)
    owner = admission.user_id or body.owner_user_id
    if owner is not None:
        memberships.add(change, organization, owner, "owner")
    return Created(org_id=organization.id, sync=_sync(organization))


@router.get("/api/organizations")
def index(  # noqa: PLR0913 - the filters of a list
    *,
    admission: TheAdmission,
    runtime: TheRuntime,
    search: Search = None,
    plan: Plan = None,
    limit: Limit = 50,
    cursor: PageCursor = None,
) -> OrganizationsPage:
    """A person's own organizations; for a service all of them. Deleted ones aside, oldest first."""
    after = None if cursor is None else _after(cursor)
    wanted = Wanted(user_id=admission.user_id, search=search, plan=plan, after=after)
    with runtime.database.read() as session:
        found = queries.page(session, wanted, limit + 1)
    page = found[:limit]
    more = _cursor(page[-1].organization) if len(found) > limit else None
    return OrganizationsPage(
        organizations=[responses.organization(entry) for entry in page], count=len(page), next_cursor=more
    )


@router.get("/api/organizations/selector")
def selector(admission: TheAdmission) -> Choices:
    """The caller's organizations in short, to choose one for `X-Organization-ID`."""
    choices = [
        responses.Choice(
            id=entry.organization.id, name=entry.organization.name, plan=entry.organization.plan_tier, role=entry.role
        )
        for entry in admission.organizations
    ]
    chosen = admission.organization
    return Choices(organizations=choices, count=len(choices), default=chosen.organization.id if chosen else None)


@router.get("/api/users/{user_id}/organizations")
def of_user(user_id: UserIdInPath, runtime: TheRuntime) -> Organizations:
    """Where somebody belongs: oneself; for a service anybody."""
    with runtime.database.read() as session:
        found = [responses.organization(entry) for entry in queries.seats(session, user_id)]
    return Organizations(organizations=found, count=len(found))


@router.get("/api/organizations/{org_id}")
def show(org_id: OrgId, admission: TheAdmission) -> responses.Organization:  # noqa: ARG001 - the admission looked it up
    """One organization."""
    if admission.organization is None:
        raise problems.no_organization()
    return responses.organization(admission.organization)


@router.patch("/api/organizations/{org_id}")
def change_details(org_id: OrgId, body: Details, writer: TheWriter) -> Changed:
    """Rename it, or change the billing details; both billers follow."""

    def work(change: Change) -> Changed:
        organization = open_organization(change, org_id)
        if body.name is not None:
            commands.rename(change, organization, body.name)
        commands.change_billing_details(change, organization, billing_email=body.billing_email, currency=body.currency)
        return Changed(status="updated", sync=_sync(organization))

    return writer.change(work)


@router.patch("/api/organizations/{org_id}/billing")
def change_billing(org_id: OrgId, body: CustomerIds, writer: TheWriter) -> Changed:
    """Link customers that exist at the billers. Services alone: an id of somebody else would bill them."""

    def work(change: Change) -> Changed:
        organization = open_organization(change, org_id)
        provider_ids.replace(change, organization, {"lago": body.lago_id, "stripe": body.stripe_id})
        return Changed(status="updated", sync=_sync(organization))

    return writer.change(work)


@router.patch("/api/organizations/{org_id}/plan")
def change_plan(org_id: OrgId, body: WantedPlan, writer: TheWriter, runtime: TheRuntime) -> PlanChanged:
    """A higher plan applies now, a lower one at the end of the period; the present one takes that back."""

    def work(change: Change) -> PlanChanged:
        organization = open_organization(change, org_id)
        plan_changes.change_plan(change, organization, body.plan_tier, runtime.catalog)
        return PlanChanged(
            status="updated",
            plan_tier=organization.plan_tier,
            pending_plan_tier=organization.pending_plan_tier,
            effective="period_end" if organization.pending_plan_tier else "now",
            sync=_sync(organization),
        )

    return writer.change(work)


@router.put("/api/organizations/{org_id}/status")
def change_status(org_id: OrgId, body: WantedStatus, writer: TheWriter, admission: TheAdmission) -> Changed:
    """A service suspends, opens and deletes; an owner may delete, which ends the subscriptions and keeps customers."""
    if admission.user_id is not None and body.status != "deleted":
        detail = "An owner can set `deleted`; `active` and `suspended` are for services alone."
        raise problems.forbidden(detail)

    def work(change: Change) -> Changed:
        organization = commands.lock(change.session, org_id)
        if organization is None:
            raise problems.no_organization()
        commands.change_status(change, organization, body.status)
        return Changed(status=body.status, sync=_sync(organization))

    return writer.change(work)


def _sync(organization: Organization) -> Sync:
    return Sync(sequence=organization.billing_version)


def _cursor(last: Organization) -> str:
    words = json.dumps([last.created_at.isoformat(), last.id])
    return base64.urlsafe_b64encode(words.encode()).decode().rstrip("=")


def _after(cursor: str) -> Cursor:
    refusal = problems.unprocessable("query.cursor", "take the `next_cursor` of the page before")
    try:
        moment, org_id = json.loads(base64.urlsafe_b64decode(cursor.encode() + b"=" * (-len(cursor) % 4)))
        after = Cursor(created_at=datetime.fromisoformat(moment), org_id=org_id)
        usable = after.created_at.tzinfo is not None and ID_PATTERN.fullmatch(org_id)
    except (ValueError, TypeError, RecursionError):
        raise refusal from None
    if not usable:
        raise refusal
    return after
