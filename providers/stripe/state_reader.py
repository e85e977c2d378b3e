"""Reads the customers and subscriptions in Stripe and never writes (``core.ports.provider.StateReader``).

Lists are ordered by creation and paged by the last id, so no existing object is missed while others are created.
Stripe's events show who wrote last: a request of ours carries a key of ours, a change in the dashboard carries none.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime

import stripe
from pydantic import ValidationError
from stripe.params import CustomerListParams, EventListParams, SubscriptionListParams

from core.ports.errors import RejectedError
from core.ports.external_ids import OWN_IDS, ExternalIds
from core.ports.observed import (
    ObservedCustomer,
    ObservedPage,
    ObservedPayment,
    ObservedState,
    ObservedSubscription,
    RemoteWrite,
    Repair,
)
from core.ports.provider import RequestPermits
from providers.stripe.balances import credit_of
from providers.stripe.client import STRIPE_PAGE_SIZE, StripeClient, next_cursor
from providers.stripe.errors import MISSING_PERMISSION, RESOURCE_MISSING
from providers.stripe.metadata import only_ours, read_marks
from providers.stripe.plan_changes import SubscriptionState, arrangement_of, parse_state
from providers.stripe.responses import (
    StripeCustomer,
    StripeEvent,
    StripePage,
    StripeSubscription,
    StripeSubscriptionSummary,
)
from providers.transport.permits import READ_ONLY
from providers.transport.safe_ids import printable

_MAX_EVENT_PAGES = 10
# Prefixes of our idempotency keys: of intents (core.reconcile.attempt), and of updates of customers and subscriptions.
OUR_IDEMPOTENCY_KEY_PREFIXES = ("billing-sync:", "update_customer:", "change_subscription:")
_WRITE_EVENT_TYPES = [
    "customer.created",
    "customer.updated",
    "customer.deleted",
    "customer.subscription.created",
    "customer.subscription.updated",
    "customer.subscription.deleted",
]


class _ListedSubscription(StripeSubscriptionSummary):
    """A subscription that may not be ours, so few fields are required. ``customer`` is None for a v2 account."""

    customer: str | None = None
    status: str = ""
    created: int
    items: object = None


class _WriteEvent(StripeEvent):
    created: int


class StripeStateReader:
    def __init__(self, client: StripeClient, permits: RequestPermits = READ_ONLY) -> None:
        self._client = client
        self._permits = permits

    def with_permits(self, permits: RequestPermits) -> StripeStateReader:
        return StripeStateReader(self._client, permits)

    def customers(self, cursor: str | None) -> ObservedPage[ObservedCustomer]:
        def fetch_page(last_id: str | None) -> stripe.StripeObject:
            params: CustomerListParams = {"limit": STRIPE_PAGE_SIZE}
            return self._client.v1.customers.list(params if last_id is None else {**params, "starting_after": last_id})

        found = self._client.page_after(
            self._permits, "GET /v1/customers", "list the customers", fetch_page, cursor, StripePage[StripeCustomer]
        )
        return ObservedPage(rows=tuple(map(_observed_customer, found.data)), next_cursor=next_cursor(found))

    def subscriptions(self, cursor: str | None) -> ObservedPage[ObservedSubscription]:
        def fetch_page(last_id: str | None) -> stripe.StripeObject:
            params: SubscriptionListParams = {"limit": STRIPE_PAGE_SIZE}
            return self._client.v1.subscriptions.list(
                params if last_id is None else {**params, "starting_after": last_id}
            )

        found = self._client.page_after(
            self._permits,
            "GET /v1/subscriptions",
            "list the subscriptions",
            fetch_page,
            cursor,
            StripePage[_ListedSubscription],
        )
        return ObservedPage(rows=_live_subscriptions(found), next_cursor=next_cursor(found))

    def read(
        self,
        org_id: str,
        customer_ids: Collection[str],
        external_ids: ExternalIds = OWN_IDS,  # noqa: ARG002 - Lago's
    ) -> ObservedState:
        found = [self._read_customer(org_id, each) for each in sorted(customer_ids)]
        customers = tuple(each for each in found if each is not None)
        return ObservedState(
            customers=customers,
            subscriptions=tuple(
                observed
                for each in customers
                if not each.deleted
                for observed in self._list_subscriptions(org_id, each.id)
            ),
        )

    def read_payment(
        self,
        org_id: str,  # noqa: ARG002 - the customer shows it
        observed: ObservedState,
        *,
        is_charging: bool,  # noqa: ARG002
        external_ids: ExternalIds = OWN_IDS,  # noqa: ARG002
    ) -> ObservedPayment:
        """By the customer's own flag, which Stripe sets and clears with each invoice that fails or is paid. No call."""
        return ObservedPayment(failed=any(each.has_unpaid_invoice for each in observed.customers))

    def recent_writes(self) -> list[RemoteWrite]:
        """The last thousand writes of the thirty days that Stripe keeps; none if the key may not read events.

        Who wrote last is a remark on a difference, so a right that is missing only for it must not hide the difference.
        """

        def fetch_page(last_id: str | None) -> stripe.StripeObject:
            params: EventListParams = {"types": _WRITE_EVENT_TYPES, "limit": STRIPE_PAGE_SIZE}
            return self._client.v1.events.list(params if last_id is None else {**params, "starting_after": last_id})

        found: list[RemoteWrite] = []
        cursor: str | None = None
        for _ in range(_MAX_EVENT_PAGES):
            try:
                page = self._client.page_after(
                    self._permits, "GET /v1/events", "list the events", fetch_page, cursor, StripePage[_WriteEvent]
                )
            except RejectedError as error:
                if error.code != MISSING_PERMISSION:
                    raise
                return []
            found += [_remote_write(event) for event in page.data]
            cursor = next_cursor(page)
            if cursor is None:
                break
        return found

    def planned_requests(self, repair: Repair) -> list[str]:
        requests = [f"POST /v1/customers/{repair.customer_id}"] if repair.updates_customer else []
        if repair.subscription is not None and repair.observed is not None:
            path = f"/v1/subscriptions/{repair.observed.id}"
            requests += [f"GET {path}", *[f"POST {path}"] * _count_updates(repair)]
        return requests

    def _read_customer(self, org_id: str, customer_id: str) -> ObservedCustomer | None:
        try:
            found = self._client.send(
                self._permits,
                "GET /v1/customers/{id}",
                f"read customer {printable(customer_id)} of {org_id}",
                lambda: self._client.v1.customers.retrieve(customer_id),
                StripeCustomer,
            )
        except RejectedError as error:
            if error.code != RESOURCE_MISSING:
                raise
            return None
        return _observed_customer(found)

    def _list_subscriptions(self, org_id: str, customer_id: str) -> tuple[ObservedSubscription, ...]:
        found = self._client.send(
            self._permits,
            "GET /v1/subscriptions",
            f"list the subscriptions of customer {printable(customer_id)} of {org_id}",
            lambda: self._client.v1.subscriptions.list({"customer": customer_id, "limit": STRIPE_PAGE_SIZE}),
            StripePage[_ListedSubscription],
        )
        return _live_subscriptions(found)


def _observed_customer(customer: StripeCustomer) -> ObservedCustomer:
    return ObservedCustomer(
        id=customer.id,
        org_id=customer.org_id,
        former_org_id=customer.former_org_id,
        database_id=customer.database_id,
        name=customer.name,
        email=customer.email,
        deleted=customer.deleted,
        has_unpaid_invoice=customer.delinquent is True,
        credit=credit_of(customer),
    )


def _live_subscriptions(page: StripePage[_ListedSubscription]) -> tuple[ObservedSubscription, ...]:
    return tuple(_observed_subscription(each) for each in page.data if not each.has_ended)


def _observed_subscription(subscription: _ListedSubscription) -> ObservedSubscription:
    whole = _parse_whole(subscription)
    state = None if whole is None else _parse_state(whole)
    is_scheduled = state is not None and state.scheduled_plan is not None and not state.took_effect
    return ObservedSubscription(
        id=subscription.id,
        customer_id=subscription.customer or "",
        org_id=read_marks(only_ours(subscription.metadata)).get("org_id") or None,
        former_org_id=read_marks(subscription.metadata).get("org_id") or None,
        plan_code=(state.paid_plan or None) if state is not None else None,
        price_id=state.item.price.id if state is not None and state.scheduled_plan is None else None,
        # The next invoice uses the price on the item, whatever our marks say.
        next_plan_code=state.billed_plan
        if state is not None and is_scheduled and state.billed_plan != state.paid_plan
        else None,
        arrangement=None if whole is None else arrangement_of(whole),
        remark=None if state is None or state.scheduled_plan is None else "pending" if is_scheduled else "took_effect",
        changed_at=datetime.fromtimestamp(subscription.created, UTC),
    )


def _parse_whole(subscription: _ListedSubscription) -> StripeSubscription | None:
    """None if it is not of a kind that could be ours."""
    try:
        return StripeSubscription.model_validate(subscription.model_dump())
    except ValidationError:
        return None


def _parse_state(subscription: StripeSubscription) -> SubscriptionState | None:
    """None if it has no plan that could be ours."""
    try:
        return parse_state(subscription)
    except RejectedError:
        return None


def _remote_write(event: _WriteEvent) -> RemoteWrite:
    idempotency_key = event.request.idempotency_key if event.request else None
    return RemoteWrite(
        object_id=event.data.object.id,
        written_at=datetime.fromtimestamp(event.created, UTC),
        by_us=idempotency_key is not None and idempotency_key.startswith(OUR_IDEMPOTENCY_KEY_PREFIXES),
        evidence=event.id,
    )


def _count_updates(repair: Repair) -> int:
    """How many updates ``plan_changes.next_update`` makes for this repair, one after the other."""
    desired, observed = repair.subscription, repair.observed
    if desired is None or observed is None:
        return 0
    desired = desired.as_sold(observed.plan_code, observed.next_plan_code)
    next_plan_code = desired.next_plan_code if desired.next_plan_code != desired.plan_code else None
    changes_plan = observed.plan_code != desired.plan_code
    clears_schedule = observed.remark == "took_effect" or (
        observed.remark == "pending" and (changes_plan or next_plan_code is None)
    )
    sets_schedule = next_plan_code is not None and (changes_plan or observed.next_plan_code != next_plan_code)
    return [clears_schedule, changes_plan, sets_schedule].count(True)
