"""Listings of the providers, stored page by page until they are compared, for any number of customers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal

from pydantic import TypeAdapter
from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from core.compare import desired_state
from core.compare.diff import relevant_to
from core.compare.local_state import LocalState
from core.db.models.billing_links import BillingLink
from core.db.models.drift import DriftListing
from core.db.models.organizations import Organization
from core.organizations.validation import ORGANIZATION_ID_PATTERN
from core.ports.observed import ObservedCustomer, ObservedState, ObservedSubscription, named
from core.ports.spec import Provider

ObjectType = Literal["customer", "subscription"]

_CUSTOMER_ADAPTER = TypeAdapter(ObservedCustomer)
_SUBSCRIPTION_ADAPTER = TypeAdapter(ObservedSubscription)


def add_page(
    session: Session, run_id: str, provider: Provider, rows: Sequence[ObservedCustomer] | Sequence[ObservedSubscription]
) -> None:
    """Stores one page of a listing. If a row comes twice, because the list changed meanwhile, the later one counts."""
    named_rows = _with_adopted_names(session, rows) if provider == "lago" else rows
    # One statement may write each row only once.
    values = {row.id: _row_values(run_id, provider, row) for row in named_rows}
    if not values:
        return
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    statement = dialect.insert(DriftListing).values(list(values.values()))
    session.execute(
        statement.on_conflict_do_update(
            index_elements=[DriftListing.run_id, DriftListing.provider, DriftListing.object_type, DriftListing.id],
            set_={name: statement.excluded[name] for name in ("org_id", "customer_id", "observed")},
        )
    )


def _with_adopted_names(
    session: Session, rows: Sequence[ObservedCustomer] | Sequence[ObservedSubscription]
) -> list[ObservedCustomer | ObservedSubscription]:
    """Lago's objects with the ids of the organizations that have their external ids."""
    external_ids = [each.org_id for each in rows if each.org_id is not None]
    has_one = or_(
        BillingLink.external_customer_id.in_(external_ids),
        BillingLink.external_subscription_id.in_(external_ids),
        and_(
            BillingLink.org_id.in_(external_ids),
            or_(BillingLink.external_customer_id.is_not(None), BillingLink.external_subscription_id.is_not(None)),
        ),
    )
    links = list(session.scalars(select(BillingLink).where(BillingLink.provider == "lago", has_one)))
    known = [(link.org_id, desired_state.external_ids(link)) for link in links]
    by_customer = {ids.customer_of(org_id): (org_id, ids) for org_id, ids in known}
    by_subscription = {ids.subscription_of(org_id): (org_id, ids) for org_id, ids in known}
    by_org_id = {org_id: (org_id, ids) for org_id, ids in known}
    found: list[ObservedCustomer | ObservedSubscription] = []
    for row in rows:
        by_external_id = by_customer if isinstance(row, ObservedCustomer) else by_subscription
        name = row.org_id or ""
        owner = by_external_id.get(name) or by_org_id.get(name)
        found.append(row if owner is None else named(row, *owner))
    return found


def load_observed(
    session: Session, run_id: str, provider: Provider, batch: Collection[LocalState]
) -> dict[str, ObservedState]:
    """The listed state of each organization, by its id."""
    org_ids = [local.organization.id for local in batch]
    linked_ids = {local.links[provider].customer_id for local in batch} - {None}
    customers = [
        _CUSTOMER_ADAPTER.validate_python(row)
        for row in _stored_rows(session, run_id, provider, "customer", DriftListing.org_id.in_(org_ids))
        + _stored_rows(session, run_id, provider, "customer", DriftListing.id.in_(linked_ids))
    ]
    customer_ids = linked_ids | {each.id for each in customers}
    subscriptions = [
        _SUBSCRIPTION_ADAPTER.validate_python(row)
        for row in _stored_rows(session, run_id, provider, "subscription", DriftListing.org_id.in_(org_ids))
        + _stored_rows(session, run_id, provider, "subscription", DriftListing.customer_id.in_(customer_ids))
    ]
    return _group_by_organization(provider, batch, customers, subscriptions)


def orphans(session: Session, run_id: str, cursor: str | None, limit: int) -> list[tuple[Provider, ObservedCustomer]]:
    """Customers after the cursor with an ``org_id`` in our format that is not in our database."""
    sort_key = DriftListing.provider + ":" + DriftListing.id
    conditions: list[ColumnElement[bool]] = [
        DriftListing.run_id == run_id,
        DriftListing.object_type == "customer",
        DriftListing.org_id.is_not(None),
        ~select(Organization.id).where(Organization.id == DriftListing.org_id).exists(),
    ]
    if cursor is not None:
        conditions.append(sort_key > cursor)
    rows = session.execute(
        select(DriftListing.provider, DriftListing.observed).where(*conditions).order_by(sort_key).limit(limit)
    )
    return [("stripe" if row[0] == "stripe" else "lago", _CUSTOMER_ADAPTER.validate_python(row[1])) for row in rows]


def cursor_of(provider: Provider, customer: ObservedCustomer) -> str:
    """The cursor with which ``orphans`` continues after this customer."""
    return f"{provider}:{customer.id}"


def _group_by_organization(
    provider: Provider,
    batch: Collection[LocalState],
    customers: Iterable[ObservedCustomer],
    subscriptions: Iterable[ObservedSubscription],
) -> dict[str, ObservedState]:
    owners = {local.links[provider].customer_id: local.organization.id for local in batch}
    customers_by_org: dict[str, list[ObservedCustomer]] = {local.organization.id: [] for local in batch}
    orgs_by_customer: dict[str, set[str]] = {}
    for customer in customers:
        for org_id in customers_by_org.keys() & {customer.org_id, owners.get(customer.id)}:
            customers_by_org[org_id].append(customer)
            orgs_by_customer.setdefault(customer.id, set()).add(org_id)
    subscriptions_by_org: dict[str, list[ObservedSubscription]] = {org_id: [] for org_id in customers_by_org}
    for each in subscriptions:
        org_ids = {each.org_id, owners.get(each.customer_id), *orgs_by_customer.get(each.customer_id, ())}
        for org_id in customers_by_org.keys() & org_ids:
            subscriptions_by_org[org_id].append(each)
    return {
        local.organization.id: relevant_to(
            local,
            provider,
            ObservedState(
                customers=tuple(customers_by_org[local.organization.id]),
                subscriptions=tuple(subscriptions_by_org[local.organization.id]),
            ),
        )
        for local in batch
    }


def _stored_rows(
    session: Session, run_id: str, provider: Provider, object_type: ObjectType, condition: ColumnElement[bool]
) -> list[dict[str, Any]]:
    return list(
        session.scalars(
            select(DriftListing.observed).where(
                DriftListing.run_id == run_id,
                DriftListing.provider == provider,
                DriftListing.object_type == object_type,
                condition,
            )
        )
    )


def _row_values(run_id: str, provider: Provider, row: ObservedCustomer | ObservedSubscription) -> dict[str, Any]:
    object_type: ObjectType
    if isinstance(row, ObservedCustomer):
        object_type, customer_id, observed = "customer", row.id, _CUSTOMER_ADAPTER.dump_python(row, mode="json")
    else:
        object_type, customer_id, observed = (
            "subscription",
            row.customer_id,
            _SUBSCRIPTION_ADAPTER.dump_python(row, mode="json"),
        )
    return {
        "run_id": run_id,
        "provider": provider,
        "object_type": object_type,
        "id": row.id,
        "org_id": row.org_id if row.org_id is not None and ORGANIZATION_ID_PATTERN.fullmatch(row.org_id) else None,
        "customer_id": customer_id,
        "observed": observed,
    }
