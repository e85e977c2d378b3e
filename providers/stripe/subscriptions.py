"""The one Stripe subscription of an organization, where Stripe charges: never two payers, never charged twice.

Every step starts from what Stripe says now. The list of a customer's subscriptions never lags (stripe.md 2), so it
is the guard before a create and the proof after a lost answer.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import NoReturn, cast

import stripe
from stripe.params import SubscriptionCreateParams, SubscriptionListParams, SubscriptionUpdateParams

from core.catalog.plans import Ending
from core.common.json_types import Json
from core.ports.errors import AmbiguousError, RejectedError, UnsettledError
from core.ports.provider import Claim, Intent, Subscription
from core.ports.spec import Known, SubscriptionSpec
from providers.stripe.client import PAGE_SIZE, Door, keyed, once
from providers.stripe.customers import CREATE_SUBSCRIPTION, outlast, window
from providers.stripe.errors import MISSING, PROVIDER
from providers.stripe.plan_changes import Change, next_change, state_of
from providers.stripe.prices import Prices
from providers.stripe.responses import CustomerAnswer, MarkedSubscription, Page, SubscriptionAnswer
from providers.transport.safe_ids import shown

CREATES = "POST /v1/subscriptions"

_LIVE = frozenset({"active", "trialing", "past_due", "unpaid", "incomplete", "paused"})

# Back to the paid plan, up, scheduled: three. One more reads that nothing is left to do.
_MOST_CHANGES = 4
_MOST_PAGES = 10  # 500 subscriptions may be active at once (stripe.md 6), ended ones come on top


class Subscriptions:
    def __init__(
        self, door: Door, prices: Prices, ending: Ending, days_until_due: int, clock: Callable[[], datetime]
    ) -> None:
        self._door = door
        self._prices = prices
        self._ending = ending
        self._days_until_due = days_until_due
        self._clock = clock

    def make(self, spec: SubscriptionSpec, known: Known, claim: Claim) -> Subscription:
        if not spec.customer_id:
            # An empty filter lists everybody's subscriptions, and Stripe's schema lets an empty customer pass.
            message = f"organization {spec.org_id} has no Stripe customer yet; its subscription comes after that"
            raise RejectedError(PROVIDER, message)
        if known.subscription_id is None:
            return self._bring(self._first(spec, claim), spec, claim)
        found = self._read(known.subscription_id, claim)
        if found.has_ended and known.ended_by_us:
            return self._bring(self._first(spec, claim), spec, claim)
        if found.has_ended:
            # A successor that a person made and marked in Stripe is joined; without one, charging again is theirs.
            found = self._ours_alive(spec, self._all_of(spec.customer_id, claim)) or _refuse_ended(found, spec)
        return self._bring(found, spec, claim)

    def end(self, known: Known, org_id: str, claim: Claim) -> None:
        intent = claim.intent if claim.intent and claim.intent.operation == CREATE_SUBSCRIPTION else None
        if known.subscription_id is not None:
            self._cancel(known.subscription_id, claim)
        if not known.customer_id or (known.subscription_id is not None and intent is None):
            return
        # What a lost answer or a late worker left behind would charge for ever.
        left = [found.id for found in self._alive_on(known.customer_id, claim) if found.org_id == org_id]
        for subscription_id in left:
            self._cancel(subscription_id, claim)
        if intent is not None and not left:
            outlast(intent, self._clock())

    def _first(self, spec: SubscriptionSpec, claim: Claim) -> SubscriptionAnswer:
        """The subscription that is there after a lost answer, or a new one; never a second."""
        there = self._all_of(spec.customer_id, claim)
        if (found := self._ours_alive(spec, there)) is not None:
            return found
        intent = claim.intent
        if intent is not None and intent.operation == CREATE_SUBSCRIPTION:
            if intent.key_is_trusted(self._clock()):
                claim.book(CREATES)
                intent = claim.resend()
                try:
                    created = self._post(intent, spec, claim)
                except (UnsettledError, RejectedError):
                    there = self._all_of(spec.customer_id, claim)
                else:
                    return self._as_it_is(created, spec, claim)
            else:
                outlast(intent, self._clock())
            if (found := self._left_behind(intent, spec, there)) is not None:
                return found
        body = self._body(spec, claim)
        claim.book(CREATES)
        intent = claim.write_ahead(CREATE_SUBSCRIPTION, body)
        return self._as_it_is(self._post(intent, spec, claim), spec, claim)

    def _as_it_is(self, created: SubscriptionAnswer, spec: SubscriptionSpec, claim: Claim) -> SubscriptionAnswer:
        """A replay is a snapshot: it shows as active what has been cancelled since."""
        return self._alive(self._read(created.id, claim), spec) if created.replayed else created

    def _left_behind(
        self, intent: Intent, spec: SubscriptionSpec, there: list[SubscriptionAnswer]
    ) -> SubscriptionAnswer | None:
        if (found := self._ours_alive(spec, there)) is not None:
            return found
        ours = [found for found in there if found.org_id == spec.org_id and found.created >= window(intent)[0]]
        return _refuse_ended(ours[0], spec) if ours else None

    def _body(self, spec: SubscriptionSpec, claim: Claim) -> dict[str, Json]:
        return {
            "customer": spec.customer_id,
            "collection_method": "send_invoice",
            "days_until_due": self._days_until_due,
            "items": [{"price": self._prices.priced(spec.plan_code, claim).id, "quantity": 1}],
            "billing_mode": {"type": "flexible"},
            "metadata": {"org_id": spec.org_id, "plan": spec.plan_code},
        }

    def _post(self, intent: Intent, spec: SubscriptionSpec, claim: Claim) -> SubscriptionAnswer:
        body = cast("SubscriptionCreateParams", dict(intent.body))
        return self._door.send(
            claim,
            CREATES,
            f"create the subscription of {spec.org_id} for customer {spec.customer_id}",
            lambda: self._door.v1.subscriptions.create(body, keyed(intent.key)),
            SubscriptionAnswer,
        )

    def _bring(self, found: SubscriptionAnswer, spec: SubscriptionSpec, claim: Claim) -> Subscription:
        """Change what was read until it is what the spec wants, reading each answer."""
        self._check_ours(found, spec)
        for _ in range(_MOST_CHANGES):
            state = state_of(found)
            change = next_change(state, spec, lambda plan: self._prices.priced(plan, claim))
            if change is None:
                pending = state.scheduled if not state.took_effect else None
                return Subscription(
                    id=found.id,
                    plan_code=state.entitled,
                    next_plan_code=pending,
                    next_plan_at=datetime.fromtimestamp(state.at, UTC) if pending else None,
                )
            found = self._change(found.id, state.item.id, change, claim)
        message = f"subscription {found.id} does not take its plan, it changes under our hands; look at it in Stripe"
        raise RejectedError(PROVIDER, message)

    def _change(self, subscription_id: str, item_id: str, change: Change, claim: Claim) -> SubscriptionAnswer:
        params: SubscriptionUpdateParams = {
            "metadata": change.metadata,
            # Named on every change: the default would prorate.
            "proration_behavior": change.proration,
        }
        if change.price is not None:
            # Without its id the price would become a second item, without its quantity 1 (stripe.md 6).
            params["items"] = [{"id": item_id, "price": change.price, "quantity": change.quantity}]
        options = once("change_subscription")
        return self._door.send(
            claim,
            "POST /v1/subscriptions/{id}",
            f"change subscription {subscription_id}",
            lambda: self._door.v1.subscriptions.update(subscription_id, params, options),
            SubscriptionAnswer,
        )

    def _cancel(self, subscription_id: str, claim: Claim) -> None:
        try:
            self._door.send(
                claim,
                "DELETE /v1/subscriptions/{id}",
                f"end subscription {subscription_id}",
                lambda: self._door.v1.subscriptions.cancel(
                    subscription_id,
                    {"invoice_now": self._ending.stripe_invoice_now, "prorate": self._ending.stripe_prorate},
                ),
                SubscriptionAnswer,
            )
        except RejectedError as error:
            # Stripe answers 404 for one that is cancelled already, and for one of another account. The first can
            # still be read; taking the second for ended would leave it charging.
            if error.code != MISSING or not self._read(subscription_id, claim).has_ended:
                raise

    def _read(self, subscription_id: str, claim: Claim) -> SubscriptionAnswer:
        try:
            return self._door.send(
                claim,
                "GET /v1/subscriptions/{id}",
                f"read subscription {subscription_id}",
                lambda: self._door.v1.subscriptions.retrieve(subscription_id),
                SubscriptionAnswer,
            )
        except RejectedError as error:
            if error.code != MISSING:
                raise
            message = (
                f"Stripe knows no subscription {subscription_id}: the key is of another account or mode; "
                "check STRIPE_SECRET_KEY"
            )
            raise RejectedError(PROVIDER, message, error.code, error.request_id) from None

    def _alive_on(self, customer_id: str, claim: Claim) -> list[MarkedSubscription]:
        """What has not ended on a customer; on a deleted one Stripe has ended all."""
        customer = self._door.send(
            claim,
            "GET /v1/customers/{id}",
            f"read the subscriptions of customer {shown(customer_id)}",
            lambda: self._door.v1.customers.retrieve(customer_id, {"expand": ["subscriptions"]}),
            CustomerAnswer,
        )
        if customer.deleted:
            return []
        shown_ones = customer.subscriptions
        if shown_ones is None or shown_ones.has_more:
            return [found for found in self._all_of(customer_id, claim) if not found.has_ended]
        return [found for found in shown_ones.data if not found.has_ended]

    def _all_of(self, customer_id: str, claim: Claim) -> list[SubscriptionAnswer]:
        def page(after: str | None) -> stripe.StripeObject:
            params: SubscriptionListParams = {"customer": customer_id, "status": "all", "limit": PAGE_SIZE}
            return self._door.v1.subscriptions.list(params if after is None else {**params, "starting_after": after})

        doing = f"list the subscriptions of customer {customer_id}"
        return self._door.pages(claim, "GET /v1/subscriptions", doing, page, Page[SubscriptionAnswer], _MOST_PAGES)

    def _ours_alive(self, spec: SubscriptionSpec, there: list[SubscriptionAnswer]) -> SubscriptionAnswer | None:
        alive = [found for found in there if not found.has_ended]
        if strangers := [found.id for found in alive if found.org_id != spec.org_id]:
            message = (
                f"customer {spec.customer_id} already pays for subscriptions that we did not make: "
                f"{', '.join(strangers)}; end them in Stripe, or mark the right one with metadata "
                f"org_id={spec.org_id} to have it joined"
            )
            raise RejectedError(PROVIDER, message)
        if len(alive) > 1:
            message = (
                f"customer {spec.customer_id} has more than one subscription of {spec.org_id}: "
                f"{', '.join(found.id for found in alive)}; end all but one in Stripe"
            )
            raise AmbiguousError(PROVIDER, message)
        return alive[0] if alive else None

    def _alive(self, found: SubscriptionAnswer, spec: SubscriptionSpec) -> SubscriptionAnswer:
        return _refuse_ended(found, spec) if found.has_ended else found

    def _check_ours(self, found: SubscriptionAnswer, spec: SubscriptionSpec) -> None:
        problem = None
        if found.customer != spec.customer_id:
            problem = f"belongs to customer {found.customer}, not to {spec.customer_id}"
        elif found.org_id not in {None, spec.org_id}:
            problem = f"is linked to organization {found.org_id}, not to {spec.org_id}"
        elif found.status not in _LIVE:
            problem = f"has the status {found.status}, which is not known here"
        if problem:
            message = f"subscription {found.id} {problem}; correct it in Stripe"
            raise RejectedError(PROVIDER, message)


def _refuse_ended(found: SubscriptionAnswer, spec: SubscriptionSpec) -> NoReturn:
    message = (
        f"subscription {found.id} ended in Stripe ({found.status}), and not by us, so nothing is charged again by "
        f"itself; to charge, make a subscription for customer {spec.customer_id} there with metadata "
        f"org_id={spec.org_id} and retry: it is then joined"
    )
    raise RejectedError(PROVIDER, message)
