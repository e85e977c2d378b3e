"""What a discovery listed, stored page by page until it is matched, for any number of customers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

from pydantic import TypeAdapter
from sqlalchemy import ColumnElement, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from core.adoption.matching import AccountCustomer, Likeness, Similarity
from core.common import email_addresses
from core.common.names import name_key
from core.db.models.adoption import DiscoveryListing
from core.db.models.organizations import Organization
from core.organizations.validation import ORGANIZATION_ID_PATTERN
from core.ports.inventory import InventoryCustomer, InventoryDiscount, InventorySubscription
from core.ports.spec import Provider

ListedType = Literal["customer", "subscription", "discount", "organization"]
CustomerKey = tuple[Provider, str]

OURS: Final = "ours"
MAX_LIKENESSES_READ: Final = 2_000
_MAX_EMAIL_KEY_LENGTH: Final = 512

_CUSTOMER_ADAPTER: Final = TypeAdapter(InventoryCustomer)
_SUBSCRIPTION_ADAPTER: Final = TypeAdapter(InventorySubscription)
_DISCOUNT_ADAPTER: Final = TypeAdapter(InventoryDiscount)


def add_page(
    session: Session,
    run_id: str,
    provider: Provider,
    rows: Sequence[InventoryCustomer] | Sequence[InventorySubscription] | Sequence[InventoryDiscount],
) -> None:
    """Stores one page of a list. If an object comes twice, because the list changed meanwhile, the later one counts."""
    _store(session, [{**_values(row), "run_id": run_id, "provider": provider} for row in rows])


def add_organizations(session: Session, run_id: str, organizations: Sequence[Organization]) -> None:
    _store(
        session,
        [
            {
                **_EMPTY,
                "run_id": run_id,
                "provider": OURS,
                "object_type": "organization",
                "id": each.id,
                "name_key": each.name_key,
                "email_key": _email_key(each.billing_email),
            }
            for each in organizations
        ],
    )


def unmatched(session: Session, run_id: str, limit: int) -> list[CustomerKey]:
    rows = session.execute(
        select(DiscoveryListing.provider, DiscoveryListing.id)
        .where(
            DiscoveryListing.run_id == run_id,
            DiscoveryListing.object_type == "customer",
            DiscoveryListing.is_matched.is_(False),
        )
        .order_by(DiscoveryListing.provider, DiscoveryListing.id)
        .limit(limit)
    )
    return [(_provider(row[0]), row[1]) for row in rows]


def mark_matched(session: Session, run_id: str, keys: Collection[CustomerKey]) -> None:
    for provider in {provider for provider, _ in keys}:
        ids = [customer_id for each, customer_id in keys if each == provider]
        session.execute(
            update(DiscoveryListing)
            .where(
                DiscoveryListing.run_id == run_id,
                DiscoveryListing.object_type == "customer",
                DiscoveryListing.provider == provider,
                DiscoveryListing.id.in_(ids),
            )
            .values(is_matched=True)
            .execution_options(synchronize_session=False)
        )


def load_customers(session: Session, run_id: str, keys: Collection[CustomerKey]) -> dict[CustomerKey, AccountCustomer]:
    """With their subscriptions and discounts."""
    found: dict[CustomerKey, AccountCustomer] = {}
    for provider in {provider for provider, _ in keys}:
        ids = [customer_id for each, customer_id in keys if each == provider]
        subscriptions: dict[str, list[InventorySubscription]] = {}
        discounts: dict[str, list[str]] = {}
        of_customers = DiscoveryListing.customer_id.in_(ids)
        for row in _observed(session, run_id, provider, "subscription", of_customers):
            subscription = _SUBSCRIPTION_ADAPTER.validate_python(row)
            subscriptions.setdefault(subscription.customer_id, []).append(subscription)
        for row in _observed(session, run_id, provider, "discount", of_customers):
            discount = _DISCOUNT_ADAPTER.validate_python(row)
            discounts.setdefault(discount.customer_id, []).append(discount.text)
        for row in _observed(session, run_id, provider, "customer", DiscoveryListing.id.in_(ids)):
            customer = _CUSTOMER_ADAPTER.validate_python(row)
            found[provider, customer.id] = AccountCustomer(
                provider=provider,
                customer=replace(customer, discounts=(*customer.discounts, *discounts.get(customer.id, ()))),
                subscriptions=tuple(subscriptions.get(customer.id, ())),
            )
    return found


def matched_before(session: Session, run_id: str, keys: Collection[CustomerKey]) -> set[CustomerKey]:
    rows = session.execute(
        select(DiscoveryListing.provider, DiscoveryListing.id).where(
            DiscoveryListing.run_id == run_id,
            DiscoveryListing.object_type == "customer",
            DiscoveryListing.is_matched.is_(True),
            DiscoveryListing.id.in_([customer_id for _, customer_id in keys]),
        )
    )
    return {(_provider(row[0]), row[1]) for row in rows} & set(keys)


def listed_ids(session: Session, run_id: str, provider: Provider, ids: Collection[str]) -> set[str]:
    """Which of these ids or external ids customers have that the provider listed."""
    rows = session.execute(
        select(DiscoveryListing.id, DiscoveryListing.external_id).where(
            DiscoveryListing.run_id == run_id,
            DiscoveryListing.object_type == "customer",
            DiscoveryListing.provider == provider,
            or_(DiscoveryListing.id.in_(ids), DiscoveryListing.external_id.in_(ids)),
        )
    )
    return {each for row in rows for each in row if each is not None} & set(ids)


def likenesses(
    session: Session, run_id: str, customers: Mapping[CustomerKey, AccountCustomer]
) -> dict[CustomerKey, list[Likeness]]:
    """What is like each customer by name, address or metadata, apart from itself."""
    keys = {key: _keys_of(each.customer) for key, each in customers.items()}
    name_keys = {name for name, _ in keys.values()} - {None}
    email_keys = {email for _, email in keys.values()} - {None}
    rows = session.execute(
        select(
            DiscoveryListing.provider,
            DiscoveryListing.id,
            DiscoveryListing.external_id,
            DiscoveryListing.name_key,
            DiscoveryListing.email_key,
        )
        .where(
            DiscoveryListing.run_id == run_id,
            DiscoveryListing.object_type.in_(("customer", "organization")),
            or_(DiscoveryListing.name_key.in_(name_keys), DiscoveryListing.email_key.in_(email_keys)),
        )
        # Organizations first: a new one beside one of ours that is like it would be charged twice.
        .order_by(DiscoveryListing.provider != OURS, DiscoveryListing.provider.desc(), DiscoveryListing.id)
        .limit(MAX_LIKENESSES_READ)
    ).all()
    by_name: dict[str, list[tuple[str, str, str]]] = {}
    by_email: dict[str, list[tuple[str, str, str]]] = {}
    for provider, object_id, external_id, name, email in rows:
        like = (provider, object_id, external_id or object_id)
        by_name.setdefault(name or "", []).append(like)
        by_email.setdefault(email or "", []).append(like)
    org_ids = _existing_org_ids(session, [each.customer for each in customers.values()])
    found: dict[CustomerKey, list[Likeness]] = {}
    for key, (name, email) in keys.items():
        likes = [
            _likeness("metadata", (OURS, each, each))
            for each in customers[key].customer.named_org_ids
            if each in org_ids
        ]
        likes += [_likeness("name", like) for like in by_name.get(name or "", ()) if name and like[:2] != key]
        likes += [_likeness("address", like) for like in by_email.get(email or "", ()) if email and like[:2] != key]
        found[key] = likes
    return found


def like_organizations(session: Session, run_id: str, customers: Collection[InventoryCustomer]) -> set[str]:
    """All organizations of ours that are like one of them by name, address or metadata, however many there are."""
    if not customers:
        return set()
    keys = [_keys_of(each) for each in customers]
    found = session.scalars(
        select(DiscoveryListing.id).where(
            DiscoveryListing.run_id == run_id,
            DiscoveryListing.object_type == "organization",
            or_(
                DiscoveryListing.name_key.in_({name for name, _ in keys if name}),
                DiscoveryListing.email_key.in_({email for _, email in keys if email}),
            ),
        )
    )
    return {*found, *_existing_org_ids(session, customers)}


def _existing_org_ids(session: Session, customers: Iterable[InventoryCustomer]) -> set[str]:
    named = {org_id for each in customers for org_id in each.named_org_ids}
    return set(session.scalars(select(Organization.id).where(Organization.id.in_(named)))) if named else set()


def _likeness(similarity: Similarity, like: tuple[str, str, str]) -> Likeness:
    provider, object_id, shown_id = like
    if provider == OURS:
        return Likeness(similarity=similarity, org_id=object_id)
    return Likeness(similarity=similarity, provider=_provider(provider), customer_id=shown_id)


def _provider(text: str) -> Provider:
    return "stripe" if text == "stripe" else "lago"


def _observed(
    session: Session, run_id: str, provider: Provider, object_type: ListedType, condition: ColumnElement[bool]
) -> list[dict[str, Any] | None]:
    return list(
        session.scalars(
            select(DiscoveryListing.observed)
            .where(
                DiscoveryListing.run_id == run_id,
                DiscoveryListing.provider == provider,
                DiscoveryListing.object_type == object_type,
                condition,
            )
            .order_by(DiscoveryListing.id)
        )
    )


_EMPTY: Final[Mapping[str, Any]] = {
    "external_id": None,
    "customer_id": None,
    "org_id": None,
    "payer_id": None,
    "name_key": None,
    "email_key": None,
    "observed": None,
}


def _values(row: InventoryCustomer | InventorySubscription | InventoryDiscount) -> dict[str, Any]:
    match row:
        case InventoryCustomer():
            name, email = _keys_of(row)
            return {
                **_EMPTY,
                "object_type": "customer",
                "id": row.id,
                "external_id": row.external_id,
                "org_id": _our_id(row.org_id),
                "payer_id": row.payer_id,
                "name_key": name,
                "email_key": email,
                "observed": _CUSTOMER_ADAPTER.dump_python(row, mode="json"),
            }
        case InventorySubscription():
            return {
                **_EMPTY,
                "object_type": "subscription",
                "id": row.id,
                "customer_id": row.customer_id,
                "org_id": _our_id(row.org_id),
                "observed": _SUBSCRIPTION_ADAPTER.dump_python(row, mode="json"),
            }
        case InventoryDiscount():
            return {
                **_EMPTY,
                "object_type": "discount",
                "id": row.id,
                "customer_id": row.customer_id,
                "observed": _DISCOUNT_ADAPTER.dump_python(row, mode="json"),
            }


def _our_id(org_id: str | None) -> str | None:
    return org_id if org_id is not None and ORGANIZATION_ID_PATTERN.fullmatch(org_id) else None


def _keys_of(customer: InventoryCustomer) -> tuple[str | None, str | None]:
    return name_key(customer.name or "") or None, _email_key(customer.email)


def _email_key(address: str | None) -> str | None:
    return email_addresses.comparison_key(address)[:_MAX_EMAIL_KEY_LENGTH] if address else None


def _store(session: Session, values: Sequence[dict[str, Any]]) -> None:
    # One statement may write each row only once.
    by_key = {(each["provider"], each["object_type"], each["id"]): each for each in values}
    if not by_key:
        return
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    statement = dialect.insert(DiscoveryListing).values(list(by_key.values()))
    session.execute(
        statement.on_conflict_do_update(
            index_elements=[
                DiscoveryListing.run_id,
                DiscoveryListing.provider,
                DiscoveryListing.object_type,
                DiscoveryListing.id,
            ],
            set_={name: statement.excluded[name] for name in _EMPTY},
        )
    )
