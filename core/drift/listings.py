"""What the billers listed, kept in the database until it is compared: any number of customers, page by page."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal

from pydantic import TypeAdapter
from sqlalchemy import ColumnElement, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from core.compare.diff import belonging
from core.compare.local_state import Ours
from core.db.models.drift import DriftSighting
from core.db.models.organizations import Organization
from core.organizations.validation import ID_PATTERN
from core.ports.observed import SeenCustomer, SeenSubscription, Sight
from core.ports.spec import Provider

Noun = Literal["customer", "subscription"]

_CUSTOMER = TypeAdapter(SeenCustomer)
_SUBSCRIPTION = TypeAdapter(SeenSubscription)


def add(
    session: Session, run_id: str, provider: Provider, rows: Sequence[SeenCustomer] | Sequence[SeenSubscription]
) -> None:
    """A page of a list. One that comes twice, because the list moved, counts as it was seen last."""
    # A statement may write a row once only.
    values = {row.id: _values(run_id, provider, row) for row in rows}
    if not values:
        return
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    statement = dialect.insert(DriftSighting).values(list(values.values()))
    session.execute(
        statement.on_conflict_do_update(
            index_elements=[DriftSighting.run_id, DriftSighting.provider, DriftSighting.noun, DriftSighting.id],
            set_={name: statement.excluded[name] for name in ("org_id", "customer_id", "seen")},
        )
    )


def of(session: Session, run_id: str, provider: Provider, batch: Collection[Ours]) -> dict[str, Sight]:
    """What was listed of each organization, by its id."""
    org_ids = [ours.organization.id for ours in batch]
    known = {ours.links[provider].customer_id for ours in batch} - {None}
    customers = [
        _CUSTOMER.validate_python(seen)
        for seen in _seen(session, run_id, provider, "customer", DriftSighting.org_id.in_(org_ids))
        + _seen(session, run_id, provider, "customer", DriftSighting.id.in_(known))
    ]
    on = known | {each.id for each in customers}
    subscriptions = [
        _SUBSCRIPTION.validate_python(seen)
        for seen in _seen(session, run_id, provider, "subscription", DriftSighting.org_id.in_(org_ids))
        + _seen(session, run_id, provider, "subscription", DriftSighting.customer_id.in_(on))
    ]
    return _shared_out(provider, batch, customers, subscriptions)


def strangers(session: Session, run_id: str, cursor: str | None, limit: int) -> list[tuple[Provider, SeenCustomer]]:
    """Customers beyond the cursor that name an organization of our form which we do not have."""
    place = DriftSighting.provider + ":" + DriftSighting.id
    conditions: list[ColumnElement[bool]] = [
        DriftSighting.run_id == run_id,
        DriftSighting.noun == "customer",
        DriftSighting.org_id.is_not(None),
        ~select(Organization.id).where(Organization.id == DriftSighting.org_id).exists(),
    ]
    if cursor is not None:
        conditions.append(place > cursor)
    rows = session.execute(
        select(DriftSighting.provider, DriftSighting.seen).where(*conditions).order_by(place).limit(limit)
    )
    return [("stripe" if row[0] == "stripe" else "lago", _CUSTOMER.validate_python(row[1])) for row in rows]


def place_of(provider: Provider, seen: SeenCustomer) -> str:
    """The cursor of ``strangers`` after this one."""
    return f"{provider}:{seen.id}"


def _shared_out(
    provider: Provider,
    batch: Collection[Ours],
    customers: Iterable[SeenCustomer],
    subscriptions: Iterable[SeenSubscription],
) -> dict[str, Sight]:
    owners = {ours.links[provider].customer_id: ours.organization.id for ours in batch}
    customers_of: dict[str, list[SeenCustomer]] = {ours.organization.id: [] for ours in batch}
    holders: dict[str, set[str]] = {}
    for customer in customers:
        for org_id in customers_of.keys() & {customer.org_id, owners.get(customer.id)}:
            customers_of[org_id].append(customer)
            holders.setdefault(customer.id, set()).add(org_id)
    subscriptions_of: dict[str, list[SeenSubscription]] = {org_id: [] for org_id in customers_of}
    for each in subscriptions:
        named = {each.org_id, owners.get(each.customer_id), *holders.get(each.customer_id, ())}
        for org_id in customers_of.keys() & named:
            subscriptions_of[org_id].append(each)
    return {
        ours.organization.id: belonging(
            ours,
            provider,
            Sight(
                customers=tuple(customers_of[ours.organization.id]),
                subscriptions=tuple(subscriptions_of[ours.organization.id]),
            ),
        )
        for ours in batch
    }


def _seen(
    session: Session, run_id: str, provider: Provider, noun: Noun, condition: ColumnElement[bool]
) -> list[dict[str, Any]]:
    return list(
        session.scalars(
            select(DriftSighting.seen).where(
                DriftSighting.run_id == run_id,
                DriftSighting.provider == provider,
                DriftSighting.noun == noun,
                condition,
            )
        )
    )


def _values(run_id: str, provider: Provider, row: SeenCustomer | SeenSubscription) -> dict[str, Any]:
    noun: Noun
    if isinstance(row, SeenCustomer):
        noun, customer_id, seen = "customer", row.id, _CUSTOMER.dump_python(row, mode="json")
    else:
        noun, customer_id, seen = "subscription", row.customer_id, _SUBSCRIPTION.dump_python(row, mode="json")
    return {
        "run_id": run_id,
        "provider": provider,
        "noun": noun,
        "id": row.id,
        "org_id": row.org_id if row.org_id is not None and ID_PATTERN.fullmatch(row.org_id) else None,
        "customer_id": customer_id,
        "seen": seen,
    }
