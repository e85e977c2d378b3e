"""One Stripe customer per organization, created once even if requests or responses are lost.

A create is recorded as an intent before it is sent, and repeated unchanged under its key. If the key proves nothing any
more (it is too old, or its response is inconclusive), Stripe is searched first by two lists that never lag: events by
idempotency key, and customers by their metadata. Only proof that none exists allows another create (stripe.md 2).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import NoReturn, cast

import stripe
from stripe.params import (
    CustomerCreateParams,
    CustomerListParams,
    CustomerListParamsCreated,
    CustomerUpdateParams,
    EventListParams,
    EventListParamsCreated,
    SubscriptionListParams,
)

from core.common.json_types import Json
from core.compare.charging_guard import DOUBLE_CHARGING
from core.ports.errors import AmbiguousError, MisconfiguredError, MustWaitError, OutcomeUnknownError, RejectedError
from core.ports.planned import PlannedStep
from core.ports.provider import AttemptContext, Customer, Intent
from core.ports.spec import CUSTOMER_DELETED, CustomerSpec, LastKnown
from providers.stripe import planned_steps
from providers.stripe.balances import credit_of
from providers.stripe.client import (
    STRIPE_PAGE_SIZE,
    StripeClient,
    in_stable_order,
    with_idempotency_key,
    with_new_idempotency_key,
)
from providers.stripe.errors import IDEMPOTENCY_KEY_REUSED, RESOURCE_MISSING, STRIPE
from providers.stripe.metadata import ORG_ID_KEY, to_metadata
from providers.stripe.responses import StripeCustomer, StripeEvent, StripePage, StripeSubscriptionSummary
from providers.transport.safe_ids import printable

CREATE_CUSTOMER = "create_customer"
CREATE_SUBSCRIPTION = "create_subscription"
CUSTOMER_CREATE_OPERATION = "POST /v1/customers"

# Our clock and Stripe's may differ: the times of an intent are ours, ``created`` is Stripe's.
STRIPE_CLOCK_SKEW = timedelta(minutes=10)
# Stripe keeps events for this long, and keys for at least a day. An earlier use of our key is not older.
LOST_KEY_LOOKBACK = timedelta(days=30)
_STRIPE_BEGAN = datetime(2011, 1, 1, tzinfo=UTC)
# A key that a former database used is one of the first: each is used for one customer.
MAX_FORMER_GENERATIONS = 10
# At Stripe's 25 creates a second a backfill creates 30,000 customers in twenty minutes.
_MAX_CUSTOMER_PAGES = 400
MAX_SUBSCRIPTION_PAGES = 10  # 500 subscriptions may be active at once (stripe.md 6), and ended ones are listed too
# Stripe aborts a request within minutes. Until then it may still take effect.
REQUEST_IN_FLIGHT_MAX = timedelta(minutes=5)


class StripeCustomers:
    def __init__(self, client: StripeClient, clock: Callable[[], datetime]) -> None:
        self._client = client
        self._clock = clock

    def ensure(self, spec: CustomerSpec, last_known: LastKnown, attempt: AttemptContext) -> Customer:
        if last_known.customer_id is None:
            return self._create(spec, last_known, attempt)
        if not last_known.customer_id.strip(". "):
            # In a URL it names no customer: POST /v1/customers/ would create a new one.
            message = f"{last_known.customer_id!r} is not a customer id; {_set_id_advice(spec)}"
            raise RejectedError(STRIPE, message)
        if last_known.confirmed and spec.name is not None:
            return _to_customer(self._update(last_known.customer_id, spec, attempt))
        return self._verify_and_update(last_known.customer_id, spec, last_known, attempt)

    def _create(self, spec: CustomerSpec, last_known: LastKnown, attempt: AttemptContext) -> Customer:
        intent = attempt.intent
        if intent is None or intent.operation != CREATE_CUSTOMER:
            return self._find_lost_in_restore(spec, last_known, attempt) or self._create_new(spec, last_known, attempt)
        lookback = STRIPE_CLOCK_SKEW
        if intent.is_key_safe(self._clock()):
            attempt.before_change(partial(self._planned_repeat, intent, spec, attempt))
            attempt.acquire_permit_ahead(CUSTOMER_CREATE_OPERATION)
            intent = attempt.resend_intent()
            try:
                created = self._post(intent, spec, attempt)
            except (OutcomeUnknownError, RejectedError) as error:
                if error.code == IDEMPOTENCY_KEY_REUSED:
                    # Not used by this intent, but by one that was lost when the database was restored.
                    lookback = LOST_KEY_LOOKBACK
            else:
                return self._confirm_created(created, spec, last_known, attempt)
        else:
            wait_out_inflight(intent, self._clock())
        leftover_id = self._find_leftover(intent, lookback, spec, last_known, attempt)
        return (
            self._verify_and_update(leftover_id, spec, last_known, attempt)
            if leftover_id
            else self._create_new(spec, last_known, attempt)
        )

    def _create_new(self, spec: CustomerSpec, last_known: LastKnown, attempt: AttemptContext) -> Customer:
        attempt.before_change(lambda: [PlannedStep(kind="create_customer")])
        attempt.acquire_permit_ahead(CUSTOMER_CREATE_OPERATION)
        intent = attempt.record_intent(CREATE_CUSTOMER, _request_body(spec, attempt.database_id))
        return self._confirm_created(self._post(intent, spec, attempt), spec, last_known, attempt)

    def _find_lost_in_restore(
        self, spec: CustomerSpec, last_known: LastKnown, attempt: AttemptContext
    ) -> Customer | None:
        """The customer that was created before a backup was restored, too long ago for any key to show it.

        Search lags by minutes at most (stripe.md 2). The key still shows a customer created within the last day. Stripe
        refuses to search for some merchants, for example in India: the list of customers is the second way.
        """
        if not last_known.maybe_lost_in_restore:
            return None
        try:
            found = self._search_marked_as_ours(spec, attempt)
        except (RejectedError, MisconfiguredError):
            linked_at = None if last_known.maybe_older else last_known.linked_at
            earliest = linked_at - STRIPE_CLOCK_SKEW if linked_at is not None else _STRIPE_BEGAN
            window = (int(earliest.timestamp()), int(self._clock().timestamp()))
            found = self._list_marked_as_ours(window, spec, attempt)
        return self._verify_and_update(_single(found, spec), spec, last_known, attempt) if found else None

    def _search_marked_as_ours(self, spec: CustomerSpec, attempt: AttemptContext) -> list[str]:
        query = f"metadata['{ORG_ID_KEY}']:'{spec.org_id}'"
        page = self._client.send(
            attempt,
            "GET /v1/customers/search",
            f"search for the customer of {spec.org_id}",
            lambda: self._client.v1.customers.search({"query": query}),
            StripePage[StripeCustomer],
        )
        return [customer.id for customer in page.data if customer.org_id == spec.org_id]

    def _post(self, intent: Intent, spec: CustomerSpec, attempt: AttemptContext) -> StripeCustomer:
        body = cast("CustomerCreateParams", in_stable_order(intent.body))
        return self._client.send(
            attempt,
            CUSTOMER_CREATE_OPERATION,
            f"create the customer of {spec.org_id}",
            lambda: self._client.v1.customers.create(body, with_idempotency_key(intent.idempotency_key)),
            StripeCustomer,
        )

    def _confirm_created(
        self, created: StripeCustomer, spec: CustomerSpec, last_known: LastKnown, attempt: AttemptContext
    ) -> Customer:
        if created.replayed:  # a snapshot; the customer may have been deleted since
            is_former = _is_of_former_database(created.created, last_known, attempt)
            if is_former and self._read(created.id, attempt, spec).deleted:
                return self._create_new(spec, last_known, attempt)
            return self._verify_and_update(created.id, spec, last_known, attempt)
        if attempt.intent is not None and attempt.intent.body != _request_body(spec, attempt.database_id):
            return _to_customer(self._update(created.id, spec, attempt))
        return _to_customer(created)

    def _verify_and_update(
        self, customer_id: str, spec: CustomerSpec, last_known: LastKnown, attempt: AttemptContext
    ) -> Customer:
        """Make the customer match the spec, unless it is deleted, another organization's, or pays for other things."""
        found = self._read(customer_id, attempt, spec)
        if found.deleted:
            _refuse_deleted(found.id, spec)
        if found.org_id not in {None, spec.org_id}:
            message = (
                f"customer {found.id} is linked to organization {printable(found.org_id)} in Stripe, not to "
                f"{spec.org_id}; {_set_id_advice(spec)}, or correct metadata.{ORG_ID_KEY} in Stripe"
            )
            raise RejectedError(STRIPE, message)
        if spec.charged_by_other_provider:
            _refuse_other_payments(found.id, self._live_subscriptions(found, attempt), spec, last_known, attempt)
        has_marks = found.org_id == spec.org_id or not spec.writes_marks
        matches_spec = spec.name in {None, found.name} and has_marks and spec.email in {None, found.email}
        return _to_customer(found if matches_spec else self._update(found.id, spec, attempt))

    def _live_subscriptions(self, found: StripeCustomer, attempt: AttemptContext) -> list[StripeSubscriptionSummary]:
        """Those that came with the customer, or all pages of the list: a customer shows ten (stripe.md 4)."""
        if found.subscriptions is not None and not found.subscriptions.has_more:
            return found.subscriptions.data

        def fetch_page(last_id: str | None) -> stripe.StripeObject:
            params: SubscriptionListParams = {"customer": found.id, "limit": STRIPE_PAGE_SIZE}
            return self._client.v1.subscriptions.list(
                params if last_id is None else {**params, "starting_after": last_id}
            )

        purpose = f"list the subscriptions of customer {found.id}"
        page_type = StripePage[StripeSubscriptionSummary]
        return self._client.list_all(
            attempt, "GET /v1/subscriptions", purpose, fetch_page, page_type, MAX_SUBSCRIPTION_PAGES
        )

    def _update(self, customer_id: str, spec: CustomerSpec, attempt: AttemptContext) -> StripeCustomer:
        attempt.before_change(lambda: self._planned_update(customer_id, spec, attempt))
        body = cast("CustomerUpdateParams", _update_body(spec, attempt.database_id))
        options = with_new_idempotency_key("update_customer")
        try:
            updated = self._client.send(
                attempt,
                "POST /v1/customers/{id}",
                f"update customer {printable(customer_id)}",
                lambda: self._client.v1.customers.update(customer_id, body, options),
                StripeCustomer,
            )
        except RejectedError as error:
            # The error is the same for a deleted customer and for one that never existed. Only the first can be read.
            if error.code != RESOURCE_MISSING or not self._read(customer_id, attempt, spec).deleted:
                raise
            _refuse_deleted(customer_id, spec)
        if updated.deleted:
            _refuse_deleted(customer_id, spec)
        return updated

    def _planned_repeat(self, intent: Intent, spec: CustomerSpec, attempt: AttemptContext) -> list[PlannedStep]:
        """The create is repeated as it was, and then what differs is updated, also if it was created before."""
        live = self._list_marked_as_ours(search_window(intent), spec, attempt)
        if live:
            found = self._read(_single(live, spec), attempt, spec)
            repeated = PlannedStep(kind="create_customer", object_id=found.id, is_repeat=True)
            return [repeated, *planned_steps.customer_update(found, spec)]
        return planned_steps.repeated_create(intent.body, _request_body(spec, attempt.database_id))

    def _planned_update(self, customer_id: str, spec: CustomerSpec, attempt: AttemptContext) -> list[PlannedStep]:
        found = self._read(customer_id, attempt, spec)
        if found.deleted:
            _refuse_deleted(customer_id, spec)
        return planned_steps.customer_update(found, spec)

    def _read(self, customer_id: str, attempt: AttemptContext, spec: CustomerSpec) -> StripeCustomer:
        try:
            return self._client.send(
                attempt,
                "GET /v1/customers/{id}",
                f"read customer {printable(customer_id)}",
                lambda: self._client.v1.customers.retrieve(customer_id, {"expand": ["subscriptions"]}),
                StripeCustomer,
            )
        except RejectedError as error:
            _raise_if_missing(error, customer_id, spec)
            raise

    def _find_leftover(
        self, intent: Intent, lookback: timedelta, spec: CustomerSpec, last_known: LastKnown, attempt: AttemptContext
    ) -> str | None:
        """The customer created since ``lookback`` before the intent. None is proof that there is none.

        One of a former database that was deleted counts as none.
        """
        created_between = search_window(intent, lookback)
        live = self._list_marked_as_ours(created_between, spec, attempt)
        deleted: list[str] = []
        for event in self._list_created_with_key(intent.idempotency_key, created_between, spec, attempt):
            customer_id = event.data.object.id
            if customer_id in live:
                continue
            if not self._read(customer_id, attempt, spec).deleted:
                live.append(customer_id)
            elif not _is_of_former_database(event.created, last_known, attempt):
                deleted.append(customer_id)
        if live:
            return _single(live, spec)
        if deleted:
            _refuse_deleted(deleted[0], spec)
        return None

    def _list_created_with_key(
        self, idempotency_key: str, created_between: tuple[int, int], spec: CustomerSpec, attempt: AttemptContext
    ) -> list[StripeEvent]:
        first, last = created_between

        def fetch_page(last_id: str | None) -> stripe.StripeObject:
            created: EventListParamsCreated = {"gte": first, "lte": last}
            params: EventListParams = {"type": "customer.created", "created": created, "limit": STRIPE_PAGE_SIZE}
            return self._client.v1.events.list(params if last_id is None else {**params, "starting_after": last_id})

        purpose = f"find the customer of {spec.org_id} in the events"
        events = self._client.list_all(
            attempt, "GET /v1/events", purpose, fetch_page, StripePage[StripeEvent], _MAX_CUSTOMER_PAGES
        )
        return [event for event in events if event.request and event.request.idempotency_key == idempotency_key]

    def _list_marked_as_ours(
        self, created_between: tuple[int, int], spec: CustomerSpec, attempt: AttemptContext
    ) -> list[str]:
        first, last = created_between

        def fetch_page(last_id: str | None) -> stripe.StripeObject:
            created: CustomerListParamsCreated = {"gte": first, "lte": last}
            params: CustomerListParams = {"created": created, "limit": STRIPE_PAGE_SIZE}
            return self._client.v1.customers.list(params if last_id is None else {**params, "starting_after": last_id})

        purpose = f"find the customer of {spec.org_id} in the list of customers"
        found = self._client.list_all(
            attempt, "GET /v1/customers", purpose, fetch_page, StripePage[StripeCustomer], _MAX_CUSTOMER_PAGES
        )
        return [customer.id for customer in found if customer.org_id == spec.org_id]


def search_window(intent: Intent, lookback: timedelta = STRIPE_CLOCK_SKEW) -> tuple[int, int]:
    """When Stripe may have processed the intent, in Unix seconds; it begins ``lookback`` before the first send."""
    return (
        int((intent.first_sent_at - lookback).timestamp()),
        int((intent.last_sent_at + STRIPE_CLOCK_SKEW).timestamp()),
    )


def wait_out_inflight(intent: Intent, now: datetime) -> None:
    """Raises ``MustWaitError`` while Stripe may still be processing the last request of the intent.

    The next attempt does not repeat that request under its key, so finding nothing yet would prove nothing.
    """
    remaining = (intent.last_sent_at + REQUEST_IN_FLIGHT_MAX - now).total_seconds()
    if remaining > 0:
        raise MustWaitError(remaining, reserved=False)


def _single(live: list[str], spec: CustomerSpec) -> str:
    if len(live) > 1:
        message = (
            f"organization {spec.org_id} has more than one customer: {', '.join(sorted(live))}; "
            f"keep the one with invoices, clear metadata.{ORG_ID_KEY} of the others, then {_set_id_advice(spec)}"
        )
        raise AmbiguousError(STRIPE, message)
    return live[0]


def _refuse_other_payments(
    customer_id: str,
    live: list[StripeSubscriptionSummary],
    spec: CustomerSpec,
    last_known: LastKnown,
    attempt: AttemptContext,
) -> None:
    """Lago charges this organization, so a live subscription in Stripe would charge it twice (money.md 1)."""
    # Our own subscription, which is about to be ended, does not count.
    is_being_created = attempt.intent is not None and attempt.intent.operation == CREATE_SUBSCRIPTION
    others = [
        each.id
        for each in live
        if not (
            each.has_ended or each.id == last_known.subscription_id or (is_being_created and each.org_id == spec.org_id)
        )
    ]
    if others:
        message = (
            f"customer {customer_id} pays for {', '.join(others)} in Stripe, and Lago would charge it again; "
            "end those subscriptions in Stripe, or let Stripe charge the plan, then retry"
        )
        raise RejectedError(STRIPE, message, DOUBLE_CHARGING)


def _is_of_former_database(created: int | None, last_known: LastKnown, attempt: AttemptContext) -> bool:
    """Whether a customer that has our key is older than our link. ``created``: in Unix seconds.

    Who starts over with a new database and the same ids within a day gets what the former database created, or a
    refusal if the name or the address is another one. It is found again, unless it was deleted to start over: then the
    next key is free.
    """
    generation = attempt.intent.generation if attempt.intent is not None else 0
    if created is None or last_known.linked_at is None or generation >= MAX_FORMER_GENERATIONS:
        return False
    return created < (last_known.linked_at - STRIPE_CLOCK_SKEW).timestamp()


def _request_body(spec: CustomerSpec, database_id: str) -> dict[str, Json]:
    marks = to_metadata({"org_id": spec.org_id, "database_id": database_id})
    email: dict[str, Json] = {"email": spec.email} if spec.email else {}
    name: dict[str, Json] = {"name": spec.name} if spec.name is not None else {}
    return {**name, **email, "metadata": {**marks}}


def _update_body(spec: CustomerSpec, database_id: str) -> dict[str, Json]:
    body = _request_body(spec, database_id)
    return body if spec.writes_marks else {name: value for name, value in body.items() if name != "metadata"}


def _to_customer(customer: StripeCustomer) -> Customer:
    return Customer(id=customer.id, livemode=customer.livemode, credit=credit_of(customer))


def _set_id_advice(spec: CustomerSpec) -> str:
    return f"correct the id with `billing-sync set-customer-id {spec.org_id} --stripe cus_…`"


def _raise_if_missing(error: RejectedError, customer_id: str, spec: CustomerSpec) -> None:
    if error.code == RESOURCE_MISSING:
        message = (
            f"Stripe has no customer {printable(customer_id)}: the API key belongs to another account or mode, or the "
            f"customer was deleted or never existed; check STRIPE_SECRET_KEY, or {_set_id_advice(spec)}"
        )
        raise RejectedError(STRIPE, message, error.code, error.request_id) from None


def _refuse_deleted(customer_id: str, spec: CustomerSpec) -> NoReturn:
    message = f"customer {customer_id} was deleted in Stripe, which cannot be undone; {_set_id_advice(spec)}"
    raise RejectedError(STRIPE, message, CUSTOMER_DELETED)
