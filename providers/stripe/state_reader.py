"""What Stripe holds, read only, for the comparison with what it should hold (``core.ports.provider.Auditor``).

Lists are in the order of creation and turned by the last id, so nothing that stands is missed while others are made.
Who wrote last is told by Stripe's events: a request of ours carries a key of ours, a click carries none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import stripe
from pydantic import ValidationError
from stripe.params import CustomerListParams, EventListParams, SubscriptionListParams

from core.ports.errors import RejectedError
from core.ports.observed import Listed, Repair, SeenCustomer, SeenSubscription, Sight, Write
from core.ports.provider import Pace
from providers.stripe.client import PAGE_SIZE, Door, NoLease
from providers.stripe.errors import MISSING
from providers.stripe.plan_changes import State, state_of
from providers.stripe.responses import CustomerAnswer, EventAnswer, MarkedSubscription, Object, Page, SubscriptionAnswer
from providers.transport.safe_ids import shown

_MOST_PAGES = 10
# What our requests begin their keys with: written ahead (core.reconcile.attempt), and for one request (client.once).
OUR_KEYS = ("billing-sync:", "update_customer:", "change_subscription:")
_WRITES = [
    "customer.created",
    "customer.updated",
    "customer.deleted",
    "customer.subscription.created",
    "customer.subscription.updated",
    "customer.subscription.deleted",
]

ObjectT = TypeVar("ObjectT", bound=Object)
Turn = Callable[[str | None], stripe.StripeObject]


class _Subscription(MarkedSubscription):
    """Anybody's: nothing of it is taken for granted. ``customer`` is None where it belongs to a v2 account."""

    customer: str | None = None
    status: str = ""
    created: int
    items: object = None


class _Event(EventAnswer):
    created: int


class StripeAudit:
    def __init__(self, door: Door, pace: Pace | None = None) -> None:
        self._door = door
        self._pace = pace or NoLease()

    def paced(self, pace: Pace) -> StripeAudit:
        return StripeAudit(self._door, pace)

    def customers(self, after: str | None) -> Listed[SeenCustomer]:
        def turn(last: str | None) -> stripe.StripeObject:
            params: CustomerListParams = {"limit": PAGE_SIZE}
            return self._door.v1.customers.list(params if last is None else {**params, "starting_after": last})

        found = self._page("GET /v1/customers", "list the customers", turn, after, Page[CustomerAnswer])
        return Listed(rows=tuple(map(_customer, found.data)), after=_next(found))

    def subscriptions(self, after: str | None) -> Listed[SeenSubscription]:
        def turn(last: str | None) -> stripe.StripeObject:
            params: SubscriptionListParams = {"limit": PAGE_SIZE}
            return self._door.v1.subscriptions.list(params if last is None else {**params, "starting_after": last})

        found = self._page("GET /v1/subscriptions", "list the subscriptions", turn, after, Page[_Subscription])
        return Listed(rows=_alive(found), after=_next(found))

    def look(self, org_id: str, customer_ids: Collection[str]) -> Sight:
        found = [self._customer(org_id, each) for each in sorted(customer_ids)]
        customers = tuple(each for each in found if each is not None)
        return Sight(
            customers=customers,
            subscriptions=tuple(
                seen for each in customers if not each.deleted for seen in self._subscriptions_of(org_id, each.id)
            ),
        )

    def owes(self, org_id: str, sight: Sight) -> bool:  # noqa: ARG002 - the sight is of that one
        """By the customer's own flag, which Stripe sets and clears with each invoice that fails or is paid; no call."""
        return any(each.owes for each in sight.customers)

    def writes(self) -> list[Write]:
        """The last thousand, of the thirty days that Stripe keeps."""

        def turn(last: str | None) -> stripe.StripeObject:
            params: EventListParams = {"types": _WRITES, "limit": PAGE_SIZE}
            return self._door.v1.events.list(params if last is None else {**params, "starting_after": last})

        found: list[Write] = []
        after: str | None = None
        for _ in range(_MOST_PAGES):
            page = self._page("GET /v1/events", "list the events", turn, after, Page[_Event])
            found += [_write(event) for event in page.data]
            after = _next(page)
            if after is None:
                break
        return found

    def calls(self, repair: Repair) -> list[str]:
        calls = [f"POST /v1/customers/{repair.customer_id}"] if repair.customer else []
        if repair.subscription is not None and repair.seen is not None:
            path = f"/v1/subscriptions/{repair.seen.id}"
            calls += [f"GET {path}", *[f"POST {path}"] * _changes(repair)]
        return calls

    def _page(
        self, operation: str, doing: str, turn: Turn, after: str | None, listed: type[Page[ObjectT]]
    ) -> Page[ObjectT]:
        """The page after this id; the first one once more where what had that id is gone since."""
        try:
            return self._door.send(self._pace, operation, doing, partial(turn, after), listed)
        except RejectedError as error:
            if after is None or error.code != MISSING:
                raise
        return self._door.send(self._pace, operation, doing, partial(turn, None), listed)

    def _customer(self, org_id: str, customer_id: str) -> SeenCustomer | None:
        try:
            found = self._door.send(
                self._pace,
                "GET /v1/customers/{id}",
                f"look at customer {shown(customer_id)} of {org_id}",
                lambda: self._door.v1.customers.retrieve(customer_id),
                CustomerAnswer,
            )
        except RejectedError as error:
            if error.code != MISSING:
                raise
            return None
        return _customer(found)

    def _subscriptions_of(self, org_id: str, customer_id: str) -> tuple[SeenSubscription, ...]:
        found = self._door.send(
            self._pace,
            "GET /v1/subscriptions",
            f"list the subscriptions of customer {shown(customer_id)} of {org_id}",
            lambda: self._door.v1.subscriptions.list({"customer": customer_id, "limit": PAGE_SIZE}),
            Page[_Subscription],
        )
        return _alive(found)


def _next(page: Page[ObjectT]) -> str | None:
    return page.data[-1].id if page.has_more and page.data else None


def _customer(answer: CustomerAnswer) -> SeenCustomer:
    return SeenCustomer(
        id=answer.id,
        org_id=answer.org_id,
        name=answer.name,
        email=answer.email,
        deleted=answer.deleted,
        owes=answer.delinquent is True,
    )


def _alive(page: Page[_Subscription]) -> tuple[SeenSubscription, ...]:
    return tuple(_subscription(each) for each in page.data if not each.has_ended)


def _subscription(answer: _Subscription) -> SeenSubscription:
    state = _state(answer)
    waits = state is not None and state.scheduled is not None and not state.took_effect
    return SeenSubscription(
        id=answer.id,
        customer_id=answer.customer or "",
        org_id=answer.metadata.get("org_id") or None,
        plan_code=(state.entitled or None) if state is not None else None,
        # What the next invoice takes: the price on the item, whatever our note says.
        next_plan_code=state.sold if state is not None and waits and state.sold != state.entitled else None,
        note=None if state is None or state.scheduled is None else "waits" if waits else "came",
        changed_at=datetime.fromtimestamp(answer.created, UTC),
    )


def _state(answer: _Subscription) -> State | None:
    """None: it has no plan that could be ours."""
    try:
        return state_of(SubscriptionAnswer.model_validate(answer.model_dump()))
    except (ValidationError, RejectedError):
        return None


def _write(event: _Event) -> Write:
    key = event.request.idempotency_key if event.request else None
    return Write(
        object_id=event.data.object.id,
        at=datetime.fromtimestamp(event.created, UTC),
        ours=key is not None and key.startswith(OUR_KEYS),
        evidence=event.id,
    )


def _changes(repair: Repair) -> int:
    """How many changes ``stripe_changes.next_change`` makes of this, one after the other."""
    wanted, seen = repair.subscription, repair.seen
    if wanted is None or seen is None:
        return 0
    after = wanted.next_plan_code if wanted.next_plan_code != wanted.plan_code else None
    moves = seen.plan_code != wanted.plan_code
    clears = seen.note == "came" or (seen.note == "waits" and (moves or after is None))
    schedules = after is not None and (moves or seen.next_plan_code != after)
    return [clears, moves, schedules].count(True)
