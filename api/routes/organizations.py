"""Organizations: create, find and change them. Each change returns the version to ask ``GET …/sync`` about."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Response

from api import problems
from api.auth.authorization import Principal, PrincipalDep
from api.context import ContextDep
from api.routing import ApiRoute
from api.schemas import responses
from api.schemas.requests import (
    ChangePlanRequest,
    ChangeStatusRequest,
    CreateOrganizationRequest,
    NameFilter,
    OrgId,
    PageLimit,
    PlanFilter,
    SetCustomerIdsRequest,
    UpdateOrganizationRequest,
    UserIdFilter,
    UserIdInPath,
)
from api.schemas.responses import (
    ChangeResponse,
    CreateOrganizationResponse,
    OrganizationChoices,
    OrganizationList,
    OrganizationPage,
    PlanChangeResponse,
    SyncVersion,
)
from api.unit_of_work import IdempotencyKey, UnitOfWorkDep, lock_active_organization, lock_undeleted_organization
from core.access.limits import refuse_too_many_organizations
from core.catalog.plans import Catalog
from core.db.models.organizations import Organization
from core.events.event_types import ChangeContext
from core.organizations import commands, memberships, plan_changes, provider_ids, queries
from core.organizations.queries import OrganizationCursor, OrganizationFilter
from core.organizations.validation import ORGANIZATION_ID_PATTERN

router = APIRouter(tags=["organizations"], route_class=ApiRoute)

PageCursor = Annotated[str | None, Query(max_length=300, description="`next_cursor` of the previous page.")]


@router.post("/api/organizations", status_code=201, response_model=CreateOrganizationResponse)
def post_organization(
    body: CreateOrganizationRequest,
    unit_of_work: UnitOfWorkDep,
    principal: PrincipalDep,
    context: ContextDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Create an organization; a user who calls becomes its owner."""

    def work(change: ChangeContext) -> CreateOrganizationResponse:
        if principal.user_id is not None:
            refuse_too_many_organizations(change, principal.user_id, context.user_limits)
        return create_organization(change, body, principal, context.catalog)

    return unit_of_work.run_idempotent(idempotency_key, body, 201, work)


def create_organization(
    change: ChangeContext, body: CreateOrganizationRequest, principal: Principal, catalog: Catalog
) -> CreateOrganizationResponse:
    if principal.user_id is not None and body.owner_user_id not in {None, principal.user_id}:
        detail = "only a service may name another owner"
        raise problems.unprocessable("body.owner_user_id", detail)
    new = commands.NewOrganization(
        name=body.name, plan_tier=body.plan_tier, billing_email=body.billing_email, currency=body.currency
    )
    organization = commands.create(change, new, catalog)
    owner = principal.user_id or body.owner_user_id
    if owner is not None:
        memberships.add(change, organization, owner, "owner", is_chosen=principal.user_id is not None)
    return CreateOrganizationResponse(org_id=organization.id, sync=_sync_version(organization))


@router.get("/api/organizations")
def list_organizations(  # noqa: PLR0913 - the filters of a list
    *,
    principal: PrincipalDep,
    context: ContextDep,
    search: NameFilter = None,
    plan: PlanFilter = None,
    user_id: UserIdFilter = None,
    limit: PageLimit = 50,
    cursor: PageCursor = None,
) -> OrganizationPage:
    """The caller's organizations; for a service all of them, or a user's. Without deleted ones, oldest first."""
    if principal.user_id is not None and user_id not in {None, principal.user_id}:
        detail = "only a service may name another user"
        raise problems.unprocessable("query.user_id", detail)
    after = None if cursor is None else _parse_cursor(cursor)
    organization_filter = OrganizationFilter(
        user_id=principal.user_id or user_id, search=search, plan=plan, after=after
    )
    with context.database.read() as session:
        rows = queries.list_organizations(session, organization_filter, limit + 1)
    page = rows[:limit]
    next_cursor = _format_cursor(page[-1].organization) if len(rows) > limit else None
    return OrganizationPage(
        organizations=[responses.organization_response(entry, to_service=principal.user_id is None) for entry in page],
        count=len(page),
        next_cursor=next_cursor,
    )


@router.get("/api/organizations/selector")
def get_selector(principal: PrincipalDep) -> OrganizationChoices:
    """The caller's organizations in brief, to choose one for `X-Organization-ID`."""
    choices = [
        responses.OrganizationChoice(
            id=entry.organization.id, name=entry.organization.name, plan=entry.organization.plan_tier, role=entry.role
        )
        for entry in principal.organizations
    ]
    chosen = principal.organization
    return OrganizationChoices(
        organizations=choices, count=len(choices), default=chosen.organization.id if chosen else None
    )


@router.get("/api/users/{user_id}/organizations")
def list_user_organizations(user_id: UserIdInPath, context: ContextDep, principal: PrincipalDep) -> OrganizationList:
    """Organizations of a user: your own; for a service any user's."""
    with context.database.read() as session:
        rows = queries.memberships_of_user(session, user_id)
    found = [responses.organization_response(row, to_service=principal.user_id is None) for row in rows]
    return OrganizationList(organizations=found, count=len(found))


@router.get("/api/organizations/{org_id}")
def get_organization(org_id: OrgId, principal: PrincipalDep) -> responses.OrganizationResponse:  # noqa: ARG001 - the authorization looked it up
    """One organization."""
    if principal.organization is None:
        raise problems.organization_not_found()
    return responses.organization_response(principal.organization)


@router.patch("/api/organizations/{org_id}")
def update_organization(
    org_id: OrgId, body: UpdateOrganizationRequest, context: ContextDep, unit_of_work: UnitOfWorkDep
) -> ChangeResponse:
    """Rename it, or change the billing details; the change is synced to both providers."""

    def work(change: ChangeContext) -> ChangeResponse:
        organization = lock_undeleted_organization(change, org_id)
        if body.name is not None:
            commands.rename(change, organization, body.name)
        commands.change_billing_details(
            change, organization, context.catalog, billing_email=body.billing_email, currency=body.currency
        )
        return ChangeResponse(status="updated", sync=_sync_version(organization))

    return unit_of_work.run(work)


@router.patch("/api/organizations/{org_id}/billing")
def set_customer_ids(org_id: OrgId, body: SetCustomerIdsRequest, unit_of_work: UnitOfWorkDep) -> ChangeResponse:
    """Link existing customers at the providers. Services only: a wrong id would charge another customer."""

    def work(change: ChangeContext) -> ChangeResponse:
        organization = lock_undeleted_organization(change, org_id)
        provider_ids.set_customer_ids(change, organization, {"lago": body.lago_id, "stripe": body.stripe_id})
        return ChangeResponse(status="updated", sync=_sync_version(organization))

    return unit_of_work.run(work)


@router.patch("/api/organizations/{org_id}/plan")
def change_plan(
    org_id: OrgId, body: ChangePlanRequest, unit_of_work: UnitOfWorkDep, context: ContextDep
) -> PlanChangeResponse:
    """A higher plan applies immediately, a lower one at the end of the period.

    Choosing the current plan cancels a scheduled one. A suspended organization keeps its plan.
    """

    def work(change: ChangeContext) -> PlanChangeResponse:
        organization = lock_active_organization(change, org_id)
        plan_changes.change_plan(change, organization, body.plan_tier, context.catalog)
        return PlanChangeResponse(
            status="updated",
            plan_tier=organization.plan_tier,
            pending_plan_tier=organization.pending_plan_tier,
            effective="period_end" if organization.pending_plan_tier else "now",
            sync=_sync_version(organization),
        )

    return unit_of_work.run(work)


@router.put("/api/organizations/{org_id}/status")
def change_status(
    org_id: OrgId, body: ChangeStatusRequest, unit_of_work: UnitOfWorkDep, principal: PrincipalDep
) -> ChangeResponse:
    """A service can suspend, reactivate and delete; an owner can delete.

    Deleting ends the subscriptions and keeps the customers.
    """
    if principal.user_id is not None and body.status != "deleted":
        detail = "An owner can only set `deleted`. Only a service can set `active` or `suspended`."
        raise problems.forbidden(detail)

    def work(change: ChangeContext) -> ChangeResponse:
        organization = commands.lock(change.session, org_id)
        if organization is None:
            raise problems.organization_not_found()
        commands.change_status(change, organization, body.status)
        return ChangeResponse(status=body.status, sync=_sync_version(organization))

    return unit_of_work.run(work)


def _sync_version(organization: Organization) -> SyncVersion:
    return SyncVersion(version=organization.version)


def _format_cursor(last: Organization) -> str:
    parts = json.dumps([last.created_at.isoformat(), last.id])
    return base64.urlsafe_b64encode(parts.encode()).decode().rstrip("=")


def _parse_cursor(cursor: str) -> OrganizationCursor:
    invalid_cursor = problems.unprocessable("query.cursor", "send the `next_cursor` of the previous page")
    try:
        created_at, org_id = json.loads(base64.urlsafe_b64decode(cursor.encode() + b"=" * (-len(cursor) % 4)))
        position = datetime.fromisoformat(created_at)
        usable = position.tzinfo is not None and ORGANIZATION_ID_PATTERN.fullmatch(org_id)
        after = OrganizationCursor(created_at=position.astimezone(UTC), org_id=org_id)
    except (ValueError, TypeError, RecursionError, OverflowError):
        raise invalid_cursor from None
    if not usable:
        raise invalid_cursor
    return after
