"""One Stripe customer an organization, made once whatever is lost on the way.

A create is written ahead and repeated as it was written, under its key. Where the key proves nothing any more (too
old, or answered by a saved failure) Stripe is searched first by two lists that never lag: events by idempotency key,
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

from core.errors import AmbiguousError, RejectedError, UnavailableError
from core.gateways import Claim, Customer, CustomerSpec, Intent, Json, Known

from .stripe_answers import CustomerAnswer, EventAnswer, Page
from .stripe_door import PAGE_SIZE, Door, keyed, once
from .stripe_errors import MISSING, PROVIDER, SAVED_FAILURE

CREATE_CUSTOMER = "create_customer"

# Our clock and Stripe's may differ; both stamps of the intent are ours, ``created`` is Stripe's.
CLOCKS_MAY_DIFFER = timedelta(minutes=10)
# A backfill at Stripe's 25 creates a second leaves 30,000 customers in twenty minutes.
_MOST_PAGES = 400


class Customers:
    def __init__(self, door: Door, clock: Callable[[], datetime]) -> None:
        self._door = door
        self._clock = clock

    def make(self, spec: CustomerSpec, known: Known, claim: Claim) -> Customer:
        if known.customer_id is None:
            return self._create(spec, claim)
        if not known.customer_id.strip(". "):
            # In an address it names no customer: POST /v1/customers/ would make a new one.
            message = f"{known.customer_id!r} is no customer id; {_correct_the_id(spec)}"
            raise RejectedError(PROVIDER, message)
        if known.verified:
            return _customer(self._update(known.customer_id, spec, claim))
        return self._settle(self._read(known.customer_id, claim, spec), spec, claim)

    def _create(self, spec: CustomerSpec, claim: Claim) -> Customer:
        intent = claim.intent
        if intent is None or intent.operation != CREATE_CUSTOMER:
            return self._create_anew(spec, claim)
        if intent.key_is_trusted(self._clock()):
            intent = claim.resend()
            try:
                created = self._post(intent, spec, claim)
            except (UnavailableError, RejectedError) as error:
                if not proves_nothing(error):
                    raise
            else:
                return self._settle_repeated(created, intent, spec, claim)
        return self._adopt(intent, spec, claim) or self._create_anew(spec, claim)

    def _create_anew(self, spec: CustomerSpec, claim: Claim) -> Customer:
        return _customer(self._post(claim.write_ahead(CREATE_CUSTOMER, _body(spec)), spec, claim))

    def _post(self, intent: Intent, spec: CustomerSpec, claim: Claim) -> CustomerAnswer:
        body = cast("CustomerCreateParams", dict(intent.body))
        return self._door.send(
            claim,
            f"create the customer of {spec.org_id}",
            lambda: self._door.v1.customers.create(body, keyed(intent.key)),
            CustomerAnswer,
        )

    def _settle_repeated(self, created: CustomerAnswer, intent: Intent, spec: CustomerSpec, claim: Claim) -> Customer:
        if created.replayed:  # a snapshot: the customer may have been deleted since
            return self._settle(self._read(created.id, claim, spec), spec, claim)
        if intent.body != _body(spec):
            return _customer(self._update(created.id, spec, claim))
        return _customer(created)

    def _settle(self, found: CustomerAnswer, spec: CustomerSpec, claim: Claim) -> Customer:
        """Make a customer that was just read what it must be, unless it is gone or somebody else's."""
        if found.deleted:
            _refuse_deleted(found.id, spec)
        if found.org_id not in {None, spec.org_id}:
            message = (
                f"customer {found.id} is linked to organization {found.org_id} in Stripe, not to {spec.org_id}; "
                f"{_correct_the_id(spec)}, or correct metadata.org_id there"
            )
            raise RejectedError(PROVIDER, message)
        as_wished = found.name == spec.name and found.org_id == spec.org_id and spec.email in {None, found.email}
        return _customer(found if as_wished else self._update(found.id, spec, claim))

    def _update(self, customer_id: str, spec: CustomerSpec, claim: Claim) -> CustomerAnswer:
        body = cast("CustomerUpdateParams", _body(spec))
        options = once("update_customer")
        try:
            updated = self._door.send(
                claim,
                f"update customer {customer_id}",
                lambda: self._door.v1.customers.update(customer_id, body, options),
                CustomerAnswer,
            )
        except RejectedError as error:
            _explain_missing(error, customer_id, spec)
            raise
        if updated.deleted:
            _refuse_deleted(customer_id, spec)
        return updated

    def _read(self, customer_id: str, claim: Claim, spec: CustomerSpec) -> CustomerAnswer:
        try:
            return self._door.send(
                claim,
                f"read customer {customer_id}",
                lambda: self._door.v1.customers.retrieve(customer_id),
                CustomerAnswer,
            )
        except RejectedError as error:
            _explain_missing(error, customer_id, spec)
            raise

    def _adopt(self, intent: Intent, spec: CustomerSpec, claim: Claim) -> Customer | None:
        """What the intent left behind, made right; None is proof that it left nothing."""
        live = {found.id: found for found in self._with_our_mark(intent, spec, claim)}
        gone: list[str] = []
        for customer_id in self._made_under_key(intent, spec, claim):
            if customer_id not in live:
                found = self._read(customer_id, claim, spec)
                if found.deleted:
                    gone.append(customer_id)
                else:
                    live[customer_id] = found
        if len(live) > 1:
            message = (
                f"organization {spec.org_id} has more than one customer: {', '.join(sorted(live))}; "
                f"keep the one with invoices, clear metadata.org_id of the others, then {_correct_the_id(spec)}"
            )
            raise AmbiguousError(PROVIDER, message)
        if live:
            return self._settle(next(iter(live.values())), spec, claim)
        if gone:
            _refuse_deleted(gone[0], spec)
        return None

    def _made_under_key(self, intent: Intent, spec: CustomerSpec, claim: Claim) -> list[str]:
        first, last = window(intent)

        def page(after: str | None) -> stripe.StripeObject:
            created: EventListParamsCreated = {"gte": first, "lte": last}
            params: EventListParams = {"type": "customer.created", "created": created, "limit": PAGE_SIZE}
            return self._door.v1.events.list(params if after is None else {**params, "starting_after": after})

        doing = f"look for the customer of {spec.org_id} among the events"
        events = self._door.pages(claim, doing, page, Page[EventAnswer], _MOST_PAGES)
        return [
            event.data.object.id for event in events if event.request and event.request.idempotency_key == intent.key
        ]

    def _with_our_mark(self, intent: Intent, spec: CustomerSpec, claim: Claim) -> list[CustomerAnswer]:
        first, last = window(intent)

        def page(after: str | None) -> stripe.StripeObject:
            created: CustomerListParamsCreated = {"gte": first, "lte": last}
            params: CustomerListParams = {"created": created, "limit": PAGE_SIZE}
            return self._door.v1.customers.list(params if after is None else {**params, "starting_after": after})

        doing = f"look for the customer of {spec.org_id} among the customers"
        found = self._door.pages(claim, doing, page, Page[CustomerAnswer], _MOST_PAGES)
        return [customer for customer in found if customer.org_id == spec.org_id]


def proves_nothing(error: UnavailableError | RejectedError) -> bool:
    """Whether repeating the same create is useless: it is refused, or its saved failure comes back for ever."""
    return isinstance(error, RejectedError) or error.code == SAVED_FAILURE


def window(intent: Intent) -> tuple[int, int]:
    """From when to when Stripe may have worked on the intent, in Unix seconds."""
    return (
        int((intent.first_sent_at - CLOCKS_MAY_DIFFER).timestamp()),
        int((intent.last_sent_at + CLOCKS_MAY_DIFFER).timestamp()),
    )


def _body(spec: CustomerSpec) -> dict[str, Json]:
    email: dict[str, Json] = {"email": spec.email} if spec.email else {}
    return {"name": spec.name, **email, "metadata": {"org_id": spec.org_id}}


def _customer(answer: CustomerAnswer) -> Customer:
    return Customer(id=answer.id, livemode=answer.livemode)


def _correct_the_id(spec: CustomerSpec) -> str:
    return f"correct the id with update_org_billing_ids({spec.org_id!r}, stripe_id=…)"


def _explain_missing(error: RejectedError, customer_id: str, spec: CustomerSpec) -> None:
    if error.code == MISSING:
        message = (
            f"Stripe knows no customer {customer_id}: another account's or mode's key, or it was deleted or never "
            f"there; check STRIPE_SECRET_KEY, or {_correct_the_id(spec)}"
        )
        raise RejectedError(PROVIDER, message, error.code, error.request_id) from None


def _refuse_deleted(customer_id: str, spec: CustomerSpec) -> NoReturn:
    message = f"customer {customer_id} was deleted in Stripe, which is final; {_correct_the_id(spec)}"
    raise RejectedError(PROVIDER, message)
