"""One Stripe customer an organization, made once whatever is lost on the way.

A create is written ahead and repeated as it was written, under its key. Where the key proves nothing any more (too
old, or its answer settles nothing) Stripe is searched first by two lists that never lag: events by idempotency key,
customers by their metadata. Only proof that nothing is there allows another create (stripe.md 2).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import NoReturn, cast

import stripe
from stripe.params import (
    CustomerCreateParams,
    CustomerListParams,
    CustomerListParamsCreated,
    CustomerUpdateParams,
    EventListParams,
    EventListParamsCreated,
)

from core.common.json_types import Json
from core.compare.desired_state import SECOND_PAYER
from core.ports.errors import AmbiguousError, MustWaitError, RejectedError, UnsettledError
from core.ports.provider import Claim, Customer, Intent
from core.ports.spec import CUSTOMER_DELETED, CustomerSpec, Known
from providers.stripe.client import PAGE_SIZE, Door, keyed, once
from providers.stripe.errors import KEY_REUSED, MISSING, PROVIDER
from providers.stripe.responses import CustomerAnswer, EventAnswer, Page
from providers.transport.safe_ids import shown

CREATE_CUSTOMER = "create_customer"
CREATE_SUBSCRIPTION = "create_subscription"
CREATES = "POST /v1/customers"

# Our clock and Stripe's may differ; both stamps of the intent are ours, ``created`` is Stripe's.
CLOCKS_MAY_DIFFER = timedelta(minutes=10)
# Stripe keeps events that long, and keys for a day at least: who used ours before us did so within this.
KEYS_MAY_LIVE = timedelta(days=30)
# A backfill at Stripe's 25 creates a second leaves 30,000 customers in twenty minutes.
_MOST_PAGES = 400
# Stripe gives up a request of its own within minutes; until then it may still take effect.
A_REQUEST_LINGERS = timedelta(minutes=5)


class Customers:
    def __init__(self, door: Door, clock: Callable[[], datetime]) -> None:
        self._door = door
        self._clock = clock

    def make(self, spec: CustomerSpec, known: Known, claim: Claim) -> Customer:
        if known.customer_id is None:
            return self._create(spec, known, claim)
        if not known.customer_id.strip(". "):
            # In an address it names no customer: POST /v1/customers/ would make a new one.
            message = f"{known.customer_id!r} is no customer id; {_correct_the_id(spec)}"
            raise RejectedError(PROVIDER, message)
        if known.verified:
            return _customer(self._update(known.customer_id, spec, claim))
        return self._settle(known.customer_id, spec, known, claim)

    def _create(self, spec: CustomerSpec, known: Known, claim: Claim) -> Customer:
        intent = claim.intent
        if intent is None or intent.operation != CREATE_CUSTOMER:
            return self._find_forgotten(spec, known, claim) or self._create_anew(spec, known, claim)
        back = CLOCKS_MAY_DIFFER
        if intent.key_is_trusted(self._clock()):
            claim.book(CREATES)
            intent = claim.resend()
            try:
                created = self._post(intent, spec, claim)
            except (UnsettledError, RejectedError) as error:
                if error.code == KEY_REUSED:
                    # Not by this intent: by one that the database forgot when it was restored.
                    back = KEYS_MAY_LIVE
            else:
                return self._settle_created(created, spec, known, claim)
        else:
            outlast(intent, self._clock())
        left = self._left_behind(intent, back, spec, claim)
        return self._settle(left, spec, known, claim) if left else self._create_anew(spec, known, claim)

    def _create_anew(self, spec: CustomerSpec, known: Known, claim: Claim) -> Customer:
        claim.book(CREATES)
        intent = claim.write_ahead(CREATE_CUSTOMER, _body(spec))
        return self._settle_created(self._post(intent, spec, claim), spec, known, claim)

    def _find_forgotten(self, spec: CustomerSpec, known: Known, claim: Claim) -> Customer | None:
        """The one that a database made before its backup was restored, past what any key could tell.

        Search lags by minutes at most (stripe.md 2); what was made within the last day, the key still tells.
        """
        if not known.may_be_forgotten:
            return None
        query = f"metadata['org_id']:'{spec.org_id}'"
        answer = self._door.send(
            claim,
            "GET /v1/customers/search",
            f"search the customer of {spec.org_id}",
            lambda: self._door.v1.customers.search({"query": query}),
            Page[CustomerAnswer],
        )
        found = [customer.id for customer in answer.data if customer.org_id == spec.org_id]
        return self._settle(_only(found, spec), spec, known, claim) if found else None

    def _post(self, intent: Intent, spec: CustomerSpec, claim: Claim) -> CustomerAnswer:
        body = cast("CustomerCreateParams", dict(intent.body))
        return self._door.send(
            claim,
            CREATES,
            f"create the customer of {spec.org_id}",
            lambda: self._door.v1.customers.create(body, keyed(intent.key)),
            CustomerAnswer,
        )

    def _settle_created(self, created: CustomerAnswer, spec: CustomerSpec, known: Known, claim: Claim) -> Customer:
        if created.replayed:  # a snapshot: the customer may have been deleted since
            return self._settle(created.id, spec, known, claim)
        if claim.intent is not None and claim.intent.body != _body(spec):
            return _customer(self._update(created.id, spec, claim))
        return _customer(created)

    def _settle(self, customer_id: str, spec: CustomerSpec, known: Known, claim: Claim) -> Customer:
        """Read it and make it what it must be, unless it is gone, somebody else's, or pays for something else."""
        found = self._read(customer_id, claim, spec)
        if found.deleted:
            _refuse_deleted(found.id, spec)
        if found.org_id not in {None, spec.org_id}:
            message = (
                f"customer {found.id} is linked to organization {shown(found.org_id)} in Stripe, not to {spec.org_id}; "
                f"{_correct_the_id(spec)}, or correct metadata.org_id there"
            )
            raise RejectedError(PROVIDER, message)
        if spec.unlinked:
            _refuse_other_payments(found, spec, known, claim)
        as_wished = found.name == spec.name and found.org_id == spec.org_id and spec.email in {None, found.email}
        return _customer(found if as_wished else self._update(found.id, spec, claim))

    def _update(self, customer_id: str, spec: CustomerSpec, claim: Claim) -> CustomerAnswer:
        body = cast("CustomerUpdateParams", _body(spec))
        options = once("update_customer")
        try:
            updated = self._door.send(
                claim,
                "POST /v1/customers/{id}",
                f"update customer {shown(customer_id)}",
                lambda: self._door.v1.customers.update(customer_id, body, options),
                CustomerAnswer,
            )
        except RejectedError as error:
            # Stripe says the same of one that was deleted and of one that it never had; read, only the first is shown.
            if error.code != MISSING or not self._read(customer_id, claim, spec).deleted:
                raise
            _refuse_deleted(customer_id, spec)
        if updated.deleted:
            _refuse_deleted(customer_id, spec)
        return updated

    def _read(self, customer_id: str, claim: Claim, spec: CustomerSpec) -> CustomerAnswer:
        try:
            return self._door.send(
                claim,
                "GET /v1/customers/{id}",
                f"read customer {shown(customer_id)}",
                lambda: self._door.v1.customers.retrieve(customer_id, {"expand": ["subscriptions"]}),
                CustomerAnswer,
            )
        except RejectedError as error:
            _explain_missing(error, customer_id, spec)
            raise

    def _left_behind(self, intent: Intent, back: timedelta, spec: CustomerSpec, claim: Claim) -> str | None:
        """The customer made since ``back`` before the intent; None is proof that there is none."""
        between = window(intent, back)
        live = self._with_our_mark(between, spec, claim)
        gone: list[str] = []
        for customer_id in self._made_under_key(intent.key, between, spec, claim):
            if customer_id not in live:
                found = self._read(customer_id, claim, spec)
                (gone if found.deleted else live).append(customer_id)
        if live:
            return _only(live, spec)
        if gone:
            _refuse_deleted(gone[0], spec)
        return None

    def _made_under_key(self, key: str, between: tuple[int, int], spec: CustomerSpec, claim: Claim) -> list[str]:
        first, last = between

        def page(after: str | None) -> stripe.StripeObject:
            created: EventListParamsCreated = {"gte": first, "lte": last}
            params: EventListParams = {"type": "customer.created", "created": created, "limit": PAGE_SIZE}
            return self._door.v1.events.list(params if after is None else {**params, "starting_after": after})

        doing = f"look for the customer of {spec.org_id} among the events"
        events = self._door.pages(claim, "GET /v1/events", doing, page, Page[EventAnswer], _MOST_PAGES)
        return [event.data.object.id for event in events if event.request and event.request.idempotency_key == key]

    def _with_our_mark(self, between: tuple[int, int], spec: CustomerSpec, claim: Claim) -> list[str]:
        first, last = between

        def page(after: str | None) -> stripe.StripeObject:
            created: CustomerListParamsCreated = {"gte": first, "lte": last}
            params: CustomerListParams = {"created": created, "limit": PAGE_SIZE}
            return self._door.v1.customers.list(params if after is None else {**params, "starting_after": after})

        doing = f"look for the customer of {spec.org_id} among the customers"
        found = self._door.pages(claim, "GET /v1/customers", doing, page, Page[CustomerAnswer], _MOST_PAGES)
        return [customer.id for customer in found if customer.org_id == spec.org_id]


def window(intent: Intent, back: timedelta = CLOCKS_MAY_DIFFER) -> tuple[int, int]:
    """From when to when Stripe may have worked on the intent, in Unix seconds; ``back`` before it was first sent."""
    return (
        int((intent.first_sent_at - back).timestamp()),
        int((intent.last_sent_at + CLOCKS_MAY_DIFFER).timestamp()),
    )


def outlast(intent: Intent, now: datetime) -> None:
    """What no key holds together with the next try, and Stripe may still be working on: that nothing is there yet
    proves nothing. Raises ``MustWaitError``.
    """
    left = (intent.last_sent_at + A_REQUEST_LINGERS - now).total_seconds()
    if left > 0:
        raise MustWaitError(left, in_line=False)


def _only(live: list[str], spec: CustomerSpec) -> str:
    if len(live) > 1:
        message = (
            f"organization {spec.org_id} has more than one customer: {', '.join(sorted(live))}; "
            f"keep the one with invoices, clear metadata.org_id of the others, then {_correct_the_id(spec)}"
        )
        raise AmbiguousError(PROVIDER, message)
    return live[0]


def _refuse_other_payments(found: CustomerAnswer, spec: CustomerSpec, known: Known, claim: Claim) -> None:
    """Lago charges this organization; a subscription that lives here would charge it once more (money.md 1)."""
    live = found.subscriptions
    if live is None or live.has_more:
        message = f"Stripe does not show all subscriptions of customer {found.id}; look there, then retry"
        raise RejectedError(PROVIDER, message)
    # One that we made and that is about to be ended is no stranger.
    in_the_making = claim.intent is not None and claim.intent.operation == CREATE_SUBSCRIPTION
    others = [
        each.id
        for each in live.data
        if not (each.has_ended or each.id == known.subscription_id or (in_the_making and each.org_id == spec.org_id))
    ]
    if others:
        message = (
            f"customer {found.id} pays for {', '.join(others)} in Stripe, and Lago would charge it once more; "
            "end what lives there, or let Stripe charge its plan, then retry"
        )
        raise RejectedError(PROVIDER, message, SECOND_PAYER)


def _body(spec: CustomerSpec) -> dict[str, Json]:
    email: dict[str, Json] = {"email": spec.email} if spec.email else {}
    return {"name": spec.name, **email, "metadata": {"org_id": spec.org_id}}


def _customer(answer: CustomerAnswer) -> Customer:
    return Customer(id=answer.id, livemode=answer.livemode)


def _correct_the_id(spec: CustomerSpec) -> str:
    return f"correct the id with `billing-sync ids {spec.org_id} --stripe cus_…`"


def _explain_missing(error: RejectedError, customer_id: str, spec: CustomerSpec) -> None:
    if error.code == MISSING:
        message = (
            f"Stripe knows no customer {shown(customer_id)}: another account's or mode's key, or it was deleted or "
            f"never there; check STRIPE_SECRET_KEY, or {_correct_the_id(spec)}"
        )
        raise RejectedError(PROVIDER, message, error.code, error.request_id) from None


def _refuse_deleted(customer_id: str, spec: CustomerSpec) -> NoReturn:
    message = f"customer {customer_id} was deleted in Stripe, which is final; {_correct_the_id(spec)}"
    raise RejectedError(PROVIDER, message, CUSTOMER_DELETED)
