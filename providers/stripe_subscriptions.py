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

from core.catalog import Ending
from core.errors import AmbiguousError, RejectedError, UnavailableError
from core.gateways import Claim, Intent, Json, Known, Subscription, SubscriptionSpec

from .stripe_answers import Page, SubscriptionAnswer
from .stripe_changes import Change, next_change, state_of
from .stripe_customers import proves_nothing, window
from .stripe_door import PAGE_SIZE, Door, keyed, once
from .stripe_errors import MISSING, PROVIDER
from .stripe_prices import Prices

CREATE_SUBSCRIPTION = "create_subscription"

_ENDED = frozenset({"canceled", "incomplete_expired"})
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
        if found.status in _ENDED:
            # A successor that a person made and marked in Stripe is joined; without one, charging again is theirs.
            found = self._ours_alive(spec, self._all_of(spec.customer_id, claim)) or _refuse_ended(found, spec)
        return self._bring(found, spec, claim)

    def end(self, known: Known, org_id: str, claim: Claim) -> None:
        if known.subscription_id is not None:
            self._cancel(known.subscription_id, claim)
            return
        intent = claim.intent
        if intent is None or intent.operation != CREATE_SUBSCRIPTION or not known.customer_id:
            return
        # A create whose answer was lost: what it left behind would charge for ever.
        for found in self._all_of(known.customer_id, claim):
            if found.org_id == org_id and found.status not in _ENDED:
                self._cancel(found.id, claim)

    def _first(self, spec: SubscriptionSpec, claim: Claim) -> SubscriptionAnswer:
        """The subscription that is there after a lost answer, or a new one; never a second."""
        there = self._all_of(spec.customer_id, claim)
        if (found := self._ours_alive(spec, there)) is not None:
            return found
        intent = claim.intent
        if intent is not None and intent.operation == CREATE_SUBSCRIPTION:
            if intent.key_is_trusted(self._clock()):
                intent = claim.resend()
                try:
                    created = self._post(intent, spec, claim)
                except (UnavailableError, RejectedError) as error:
                    if not proves_nothing(error):
                        raise
                    there = self._all_of(spec.customer_id, claim)
                else:
                    # A replay is a snapshot: it shows as active what has been cancelled since.
                    return self._alive(self._read(created.id, claim), spec) if created.replayed else created
            if (found := self._left_behind(intent, spec, there)) is not None:
                return found
        return self._post(claim.write_ahead(CREATE_SUBSCRIPTION, self._body(spec, claim)), spec, claim)

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
            f"change subscription {subscription_id}",
            lambda: self._door.v1.subscriptions.update(subscription_id, params, options),
            SubscriptionAnswer,
        )

    def _cancel(self, subscription_id: str, claim: Claim) -> None:
        try:
            self._door.send(
                claim,
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
            if error.code != MISSING or self._read(subscription_id, claim).status not in _ENDED:
                raise

    def _read(self, subscription_id: str, claim: Claim) -> SubscriptionAnswer:
        try:
            return self._door.send(
                claim,
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

    def _all_of(self, customer_id: str, claim: Claim) -> list[SubscriptionAnswer]:
        def page(after: str | None) -> stripe.StripeObject:
            params: SubscriptionListParams = {"customer": customer_id, "status": "all", "limit": PAGE_SIZE}
            return self._door.v1.subscriptions.list(params if after is None else {**params, "starting_after": after})

        doing = f"list the subscriptions of customer {customer_id}"
        return self._door.pages(claim, doing, page, Page[SubscriptionAnswer], _MOST_PAGES)

    def _ours_alive(self, spec: SubscriptionSpec, there: list[SubscriptionAnswer]) -> SubscriptionAnswer | None:
        alive = [found for found in there if found.status not in _ENDED]
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
        return _refuse_ended(found, spec) if found.status in _ENDED else found

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
