"""The one Stripe subscription of an organization that Stripe charges. The organization is never charged twice.

Every step starts from the state just read from Stripe. The list of a customer's subscriptions never lags (stripe.md 2),
so it is checked before a create and after a lost response.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import NoReturn, TypeVar, cast

import stripe
from stripe.params import (
    SubscriptionCancelParams,
    SubscriptionCreateParams,
    SubscriptionListParams,
    SubscriptionUpdateParams,
)

from core.catalog.plans import EndingPolicy
from core.common.json_types import Json
from core.compare.arrangements import plan_change_conflict, provider_change_conflict
from core.ports.errors import AmbiguousError, OutcomeUnknownError, RejectedError
from core.ports.observed import ObservedCredit
from core.ports.planned import PaymentChange, PlannedStep
from core.ports.provider import AttemptContext, Intent, Subscription
from core.ports.spec import LastKnown, SoldPrice, SubscriptionSpec
from providers.stripe import planned_steps
from providers.stripe.adoption import refuse_other_terms
from providers.stripe.client import (
    STRIPE_PAGE_SIZE,
    StripeClient,
    in_stable_order,
    with_idempotency_key,
    with_new_idempotency_key,
)
from providers.stripe.collection import CollectionPolicy, StripeCollection
from providers.stripe.customers import CREATE_SUBSCRIPTION, MAX_SUBSCRIPTION_PAGES, search_window, wait_out_inflight
from providers.stripe.ending import OUR_END, StripeEnding
from providers.stripe.errors import MISSING_EMAIL, NO_CODE, NO_FIELD, RESOURCE_MISSING, STRIPE
from providers.stripe.metadata import ORG_ID_KEY, only_ours, to_metadata
from providers.stripe.plan_changes import StripeUpdate, SubscriptionState, arrangement_of, next_update, parse_state
from providers.stripe.prices import StripePrices
from providers.stripe.responses import StripeCustomer, StripePage, StripeSubscription, StripeSubscriptionSummary
from providers.transport.safe_ids import printable

SubscriptionT = TypeVar("SubscriptionT", bound=StripeSubscriptionSummary)

SUBSCRIPTION_CREATE_OPERATION = "POST /v1/subscriptions"

_STRIPE_LIVE_STATUSES = frozenset({"active", "trialing", "past_due", "unpaid", "incomplete", "paused"})

# At most three updates: back to the paid plan, upgrade, schedule. The fourth pass sees that nothing is left to do.
_MAX_UPDATES = 4


class StripeSubscriptions:
    def __init__(
        self,
        client: StripeClient,
        prices: StripePrices,
        ending: EndingPolicy,
        collection: CollectionPolicy,
        clock: Callable[[], datetime],
    ) -> None:
        self._client = client
        self._prices = prices
        self._policy = ending
        self._ending = StripeEnding(client)
        self._collection = StripeCollection(client, collection)
        self._clock = clock

    def ensure(self, spec: SubscriptionSpec, last_known: LastKnown, attempt: AttemptContext) -> Subscription:
        if not spec.customer_id:
            attempt.before_change(lambda: self._planned_creation(spec, attempt))
            # An empty filter lists the subscriptions of all customers, and Stripe's schema accepts an empty customer.
            message = (
                f"organization {spec.org_id} has no Stripe customer yet; its subscription is created after the customer"
            )
            raise RejectedError(STRIPE, message)
        sold = last_known.sold_price
        if last_known.subscription_id is None:
            return self._bring_to_spec(self._find_or_create(spec, attempt), spec, sold, attempt)
        found = _with_our_marks(self._read(last_known.subscription_id, attempt), last_known)
        if found.has_ended and last_known.ending_started and found.cancellation_comment == OUR_END:
            # The end may have been interrupted before what was left was credited, and is not repeated from now on.
            self._credit_unused([found], attempt)
            return self._bring_to_spec(self._find_or_create(spec, attempt), spec, sold, attempt)
        if found.has_ended:
            # A successor that an operator created and marked in Stripe is adopted. Only operators start charging again.
            successor = self._find_our_live(spec, self._list_all(spec.customer_id, attempt))
            found = self._adopted(successor, spec, attempt) if successor else _refuse_ended(found, spec)
        return self._bring_to_spec(found, spec, sold, attempt)

    def refuse_arranged_end(self, last_known: LastKnown, org_id: str, attempt: AttemptContext) -> None:
        """Raises ``ConflictError`` for what somebody arranged; Lago would charge for it from now on."""
        if last_known.subscription_id is None:
            return
        found = self._read(last_known.subscription_id, attempt)
        arrangement = arrangement_of(found)
        if arrangement is not None and not found.has_ended:
            raise provider_change_conflict(org_id, found.id, arrangement)

    def end(self, last_known: LastKnown, org_id: str, attempt: AttemptContext) -> ObservedCredit | None:
        """End all that could charge before anything is credited, because a credit may be refused."""
        intent = attempt.intent if attempt.intent and attempt.intent.operation == CREATE_SUBSCRIPTION else None
        ended = []
        if last_known.subscription_id is not None:
            ended.append(self._cancel(last_known.subscription_id, attempt))
        if last_known.customer_id and (last_known.subscription_id is None or intent is not None):
            ended += self._end_leftovers(last_known, last_known.customer_id, org_id, intent, attempt)
        return self._credit_unused(ended, attempt)

    def _end_leftovers(
        self, last_known: LastKnown, customer_id: str, org_id: str, intent: Intent | None, attempt: AttemptContext
    ) -> list[StripeSubscription]:
        """A subscription that a lost response or a late worker left behind would charge indefinitely."""
        live = self._list_live(customer_id, attempt)
        if live is None:
            return []
        live = [_with_our_marks(found, last_known) for found in live]
        leftovers = [self._cancel(found.id, attempt) for found in live if found.org_id == org_id]
        if intent is None:
            return leftovers
        # An attempt before may have ended what the create left, and stopped before the credit.
        earliest = search_window(intent)[0]
        known_ids = {found.id for found in leftovers}
        leftovers += [
            found
            for found in (_with_our_marks(each, last_known) for each in self._list_all(customer_id, attempt))
            if found.org_id == org_id and found.has_ended and found.created >= earliest and found.id not in known_ids
        ]
        if not leftovers:
            wait_out_inflight(intent, self._clock())
        return leftovers

    def _credit_unused(self, ended: list[StripeSubscription], attempt: AttemptContext) -> ObservedCredit | None:
        credit = None
        if self._policy.stripe_prorate:
            for each in ended:
                credit = self._ending.credit_unused(each, attempt) or credit
        return credit

    def _find_or_create(self, spec: SubscriptionSpec, attempt: AttemptContext) -> StripeSubscription:
        """The existing subscription, for example after a lost response, or a new one; never a second one."""
        existing = self._list_all(spec.customer_id, attempt)
        if (found := self._find_our_live(spec, existing)) is not None:
            return self._adopted(found, spec, attempt)
        intent = attempt.intent
        if intent is not None and intent.operation == CREATE_SUBSCRIPTION:
            if intent.is_key_safe(self._clock()):
                attempt.before_change(lambda: self._planned_creation(spec, attempt, is_repeat=True))
                attempt.acquire_permit_ahead(SUBSCRIPTION_CREATE_OPERATION)
                intent = attempt.resend_intent()
                try:
                    created = self._post(intent, spec, attempt)
                except (OutcomeUnknownError, RejectedError):
                    existing = self._list_all(spec.customer_id, attempt)
                else:
                    return self._reread_if_replayed(created, spec, attempt)
            else:
                wait_out_inflight(intent, self._clock())
            if (found := self._find_leftover(intent, spec, existing)) is not None:
                return self._adopted(found, spec, attempt)
        attempt.before_change(lambda: self._planned_creation(spec, attempt))
        body = self._create_body(spec, attempt)
        attempt.acquire_permit_ahead(SUBSCRIPTION_CREATE_OPERATION)
        intent = attempt.record_intent(CREATE_SUBSCRIPTION, body)
        return self._reread_if_replayed(self._post(intent, spec, attempt), spec, attempt)

    def _adopted(
        self, found: StripeSubscription, spec: SubscriptionSpec, attempt: AttemptContext
    ) -> StripeSubscription:
        """What our own create left behind is ours on any terms; what somebody else created only on the plan's terms."""
        if not _is_left_by(attempt.intent, found):
            state = parse_state(found) if len(found.items.data) == 1 else None
            sold = spec.as_sold(state.billed_plan, None) if state is not None else spec
            refuse_other_terms(found, self._prices.active_price(sold.plan_code, attempt), spec)
        return found

    def _reread_if_replayed(
        self, created: StripeSubscription, spec: SubscriptionSpec, attempt: AttemptContext
    ) -> StripeSubscription:
        """A replayed response is a snapshot: it may show as active what has been canceled since."""
        return self._refuse_if_ended(self._read(created.id, attempt), spec) if created.replayed else created

    def _find_leftover(
        self, intent: Intent, spec: SubscriptionSpec, existing: list[StripeSubscription]
    ) -> StripeSubscription | None:
        if (found := self._find_our_live(spec, existing)) is not None:
            return found
        ours = [
            found for found in existing if found.org_id == spec.org_id and found.created >= search_window(intent)[0]
        ]
        return _refuse_ended(ours[0], spec) if ours else None

    def _create_body(self, spec: SubscriptionSpec, attempt: AttemptContext) -> dict[str, Json]:
        price = self._prices.active_price(spec.plan_code, attempt)
        return {
            "customer": spec.customer_id,
            "items": [{"price": price.id, "quantity": 1}],
            "billing_mode": {"type": "flexible"},
            **self._collection.create_terms(spec, price, attempt),
        }

    def _post(self, intent: Intent, spec: SubscriptionSpec, attempt: AttemptContext) -> StripeSubscription:
        body = cast("SubscriptionCreateParams", in_stable_order(intent.body))
        try:
            return self._client.send(
                attempt,
                SUBSCRIPTION_CREATE_OPERATION,
                f"create the subscription of {spec.org_id} for customer {spec.customer_id}",
                lambda: self._client.v1.subscriptions.create(body, with_idempotency_key(intent.idempotency_key)),
                StripeSubscription,
            )
        except RejectedError as error:
            if error.code in {MISSING_EMAIL, NO_FIELD, NO_CODE} and body.get("collection_method") == "send_invoice":
                self._collection.refuse_missing_email(spec, attempt)
            raise

    def _bring_to_spec(
        self, found: StripeSubscription, spec: SubscriptionSpec, sold: SoldPrice | None, attempt: AttemptContext
    ) -> Subscription:
        """Update the subscription until it matches the spec, reading each response."""
        self._check_ours(found, spec)
        state = parse_state(found, sold)
        spec = spec.as_sold(state.paid_plan, state.scheduled_plan)
        for _ in range(_MAX_UPDATES):
            state = parse_state(found, sold)
            arrangement = arrangement_of(found)
            update = next_update(state, spec, lambda plan: self._prices.active_price(plan, attempt))
            if update is not None and arrangement is not None:
                if update.changes_terms(state) or not state.is_desired(spec):
                    raise plan_change_conflict(STRIPE, spec, found.id, arrangement)
                update = None  # A note of ours waits until the arrangement is removed.
            if update is None:
                scheduled_plan = state.scheduled_plan if not state.took_effect else None
                return Subscription(
                    id=found.id,
                    plan_code=state.paid_plan,
                    price_id=state.paid_price_id,
                    next_plan_code=scheduled_plan,
                    next_plan_at=datetime.fromtimestamp(state.scheduled_at, UTC) if scheduled_plan else None,
                    arrangement=arrangement,
                )
            # What took effect was free from then on, and the free price only follows on the item.
            changes_payment = update.changes_terms(state) and not state.took_effect
            payment = _payment_change(state, spec) if changes_payment else None
            attempt.before_change(partial(self._planned_updates, found, spec, sold, attempt), payment)
            if update.price not in {None, state.item.price.id}:
                self._prepare_collection(found, spec, attempt)
            found = self._update(found.id, state.item.id, update, attempt)
        message = (
            f"subscription {found.id} does not reach its plan, because someone else is changing it; check it in Stripe"
        )
        raise RejectedError(STRIPE, message)

    def _planned_creation(
        self, spec: SubscriptionSpec, attempt: AttemptContext, *, is_repeat: bool = False
    ) -> list[PlannedStep]:
        self._create_body(spec, attempt)  # raises what refuses a create
        price = self._prices.active_price(spec.plan_code, attempt)
        paid = planned_steps.planned_price(price, 1)
        step = PlannedStep(kind="create_subscription", after=spec.plan_code, price_after=paid, is_repeat=is_repeat)
        if spec.next_plan_code in {None, spec.plan_code}:
            return [step]
        created = planned_steps.created(spec, price, attempt.database_id)
        planned = self._planned(created, spec, None, attempt)
        return [step, *planned_steps.subscription_steps(created, planned, None, self._find_by_id(attempt))]

    def _planned_updates(
        self, found: StripeSubscription, spec: SubscriptionSpec, sold: SoldPrice | None, attempt: AttemptContext
    ) -> list[PlannedStep]:
        planned = self._planned(found, spec, sold, attempt)
        steps = planned_steps.subscription_steps(found, planned, sold, self._find_by_id(attempt))
        if all(item.price.is_free for item in found.items.data) and steps[0].kind == "change_plan":
            price = self._prices.active_price(spec.plan_code, attempt)
            terms = self._collection.change_terms(found, spec, price, attempt)
            if terms is not None:
                method = str(terms["collection_method"])
                steps.insert(0, PlannedStep(kind="change_collection", object_id=found.id, after=method))
        return steps

    def _planned(
        self, found: StripeSubscription, spec: SubscriptionSpec, sold: SoldPrice | None, attempt: AttemptContext
    ) -> StripeSubscription:
        """The subscription as it would be after all its updates, by the loop of ``_bring_to_spec``."""
        for _ in range(_MAX_UPDATES):
            state = parse_state(found, sold)
            update = next_update(state, spec, lambda plan: self._prices.active_price(plan, attempt))
            if update is None:
                return found
            price = state.item.price if update.price is None else self._find_by_id(attempt)(update.price)
            found = planned_steps.updated(found, update, state.item.id, price)
        return found

    def _find_by_id(self, attempt: AttemptContext) -> planned_steps.FindById:
        return lambda price_id: self._prices.price_by_id(price_id, attempt)

    def _prepare_collection(self, found: StripeSubscription, spec: SubscriptionSpec, attempt: AttemptContext) -> None:
        """Before a free subscription gets a paid price: Stripe collects that at once, by the method of that moment."""
        if not all(item.price.is_free for item in found.items.data):
            return
        price = self._prices.active_price(spec.plan_code, attempt)
        terms = self._collection.change_terms(found, spec, price, attempt)
        if terms is None:
            return
        params = cast("SubscriptionUpdateParams", {**terms, "proration_behavior": "none"})
        self._client.send(
            attempt,
            "POST /v1/subscriptions/{id}",
            f"change the collection method of subscription {found.id}",
            lambda: self._client.v1.subscriptions.update(
                found.id, params, with_new_idempotency_key("change_subscription")
            ),
            StripeSubscription,
        )

    def _update(
        self, subscription_id: str, item_id: str, update: StripeUpdate, attempt: AttemptContext
    ) -> StripeSubscription:
        params: SubscriptionUpdateParams = {
            "metadata": to_metadata({**update.marks, "database_id": attempt.database_id}),
            # Sent with every update, because the default would prorate.
            "proration_behavior": update.proration,
        }
        if update.price is not None:
            # Without the item's id the price would become a second item. Without a quantity, the quantity would be 1
            # (stripe.md 6).
            params["items"] = [{"id": item_id, "price": update.price, "quantity": update.quantity}]
        options = with_new_idempotency_key("change_subscription")
        return self._client.send(
            attempt,
            "POST /v1/subscriptions/{id}",
            f"change subscription {subscription_id}",
            lambda: self._client.v1.subscriptions.update(subscription_id, params, options),
            StripeSubscription,
        )

    def _cancel(self, subscription_id: str, attempt: AttemptContext) -> StripeSubscription:
        attempt.before_change(lambda: self._planned_end(subscription_id, attempt))
        # Without Stripe's proration: its credit does not reach the customer (stripe.md 9).
        params: SubscriptionCancelParams = {
            "invoice_now": self._policy.stripe_invoice_now,
            "prorate": False,
            "cancellation_details": {"comment": OUR_END},
        }
        try:
            return self._client.send(
                attempt,
                "DELETE /v1/subscriptions/{id}",
                f"end subscription {subscription_id}",
                lambda: self._client.v1.subscriptions.cancel(subscription_id, params),
                StripeSubscription,
            )
        except RejectedError as error:
            # Stripe returns 404 for a subscription that is canceled already, and for one of another account. Only the
            # first can still be read. If the second counted as ended, it would go on charging.
            if error.code != RESOURCE_MISSING:
                raise
            ended = self._read(subscription_id, attempt)
            if not ended.has_ended:
                raise
            return ended

    def _planned_end(self, subscription_id: str, attempt: AttemptContext) -> list[PlannedStep]:
        found = self._read(subscription_id, attempt)
        if found.has_ended:
            return []
        step = planned_steps.subscription_end(found, self._find_by_id(attempt))
        if not self._policy.stripe_prorate:
            return [step]
        return [step, *self._ending.planned_credits(found, int(self._clock().timestamp()), attempt)]

    def _read(self, subscription_id: str, attempt: AttemptContext) -> StripeSubscription:
        try:
            return self._client.send(
                attempt,
                "GET /v1/subscriptions/{id}",
                f"read subscription {subscription_id}",
                lambda: self._client.v1.subscriptions.retrieve(subscription_id),
                StripeSubscription,
            )
        except RejectedError as error:
            if error.code != RESOURCE_MISSING:
                raise
            message = (
                f"Stripe has no subscription {subscription_id}: the API key belongs to another account or mode; "
                "check STRIPE_SECRET_KEY"
            )
            raise RejectedError(STRIPE, message, error.code, error.request_id) from None

    def _list_live(self, customer_id: str, attempt: AttemptContext) -> list[StripeSubscriptionSummary] | None:
        """The subscriptions of a customer that have not ended. ``None``: it was deleted, and Stripe has ended them."""
        customer = self._client.send(
            attempt,
            "GET /v1/customers/{id}",
            f"read the subscriptions of customer {printable(customer_id)}",
            lambda: self._client.v1.customers.retrieve(customer_id, {"expand": ["subscriptions"]}),
            StripeCustomer,
        )
        if customer.deleted:
            return None
        listed = customer.subscriptions
        if listed is None or listed.has_more:
            return [found for found in self._list_all(customer_id, attempt) if not found.has_ended]
        return [found for found in listed.data if not found.has_ended]

    def _list_all(self, customer_id: str, attempt: AttemptContext) -> list[StripeSubscription]:
        def fetch_page(last_id: str | None) -> stripe.StripeObject:
            params: SubscriptionListParams = {"customer": customer_id, "status": "all", "limit": STRIPE_PAGE_SIZE}
            return self._client.v1.subscriptions.list(
                params if last_id is None else {**params, "starting_after": last_id}
            )

        purpose = f"list the subscriptions of customer {customer_id}"
        return self._client.list_all(
            attempt,
            "GET /v1/subscriptions",
            purpose,
            fetch_page,
            StripePage[StripeSubscription],
            MAX_SUBSCRIPTION_PAGES,
        )

    def _find_our_live(self, spec: SubscriptionSpec, existing: list[StripeSubscription]) -> StripeSubscription | None:
        live = [found for found in existing if not found.has_ended]
        if foreign_ids := [found.id for found in live if found.org_id != spec.org_id]:
            message = (
                f"customer {spec.customer_id} already pays for subscriptions that we did not create: "
                f"{', '.join(foreign_ids)}; end them in Stripe, or set metadata {ORG_ID_KEY}={spec.org_id} on the one "
                f"with the price {spec.plan_code} so that it is adopted"
            )
            raise RejectedError(STRIPE, message)
        if len(live) > 1:
            message = (
                f"customer {spec.customer_id} has more than one subscription of {spec.org_id}: "
                f"{', '.join(found.id for found in live)}; end all but one in Stripe"
            )
            raise AmbiguousError(STRIPE, message)
        return live[0] if live else None

    def _refuse_if_ended(self, found: StripeSubscription, spec: SubscriptionSpec) -> StripeSubscription:
        return _refuse_ended(found, spec) if found.has_ended else found

    def _check_ours(self, found: StripeSubscription, spec: SubscriptionSpec) -> None:
        problem = None
        if found.customer != spec.customer_id:
            problem = f"belongs to customer {found.customer}, not to {spec.customer_id}"
        elif found.org_id not in {None, spec.org_id}:
            problem = f"is linked to organization {found.org_id}, not to {spec.org_id}"
        elif found.status not in _STRIPE_LIVE_STATUSES:
            problem = f"has the unknown status {found.status}"
        if problem:
            message = f"subscription {found.id} {problem}; correct it in Stripe"
            raise RejectedError(STRIPE, message)


def _payment_change(state: SubscriptionState, spec: SubscriptionSpec) -> PaymentChange:
    is_scheduled = spec.next_plan_code is not None and state.paid_plan == spec.plan_code
    after = spec.next_plan_code if is_scheduled else spec.plan_code
    return PaymentChange(kind="plan", before=state.paid_plan, after=after, at_period_end=is_scheduled)


def _with_our_marks(found: SubscriptionT, last_known: LastKnown) -> SubscriptionT:
    """Without keys of a merchant that look like those of our earlier versions."""
    return found.model_copy(update={"metadata": only_ours(found.metadata)}) if last_known.is_adopted else found


def _is_left_by(intent: Intent | None, found: StripeSubscription) -> bool:
    """Whether it may be the effect of this create: our marks are on it, and it is of that time."""
    if intent is None or intent.operation != CREATE_SUBSCRIPTION:
        return False
    first, last = search_window(intent)
    return "plan" in found.marks and first <= found.created <= last


def _refuse_ended(found: StripeSubscription, spec: SubscriptionSpec) -> NoReturn:
    message = (
        f"subscription {found.id} was ended in Stripe ({found.status}), not by us, so it is not charged again "
        f"automatically; to charge again, create a subscription for customer {spec.customer_id} in Stripe with "
        f"the price {spec.plan_code} and metadata {ORG_ID_KEY}={spec.org_id}, then retry: it is adopted"
    )
    raise RejectedError(STRIPE, message)
