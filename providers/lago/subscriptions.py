"""One Lago subscription per organization. Its ``external_id`` is the organization's id; an adopted one keeps its own.

POST /subscriptions creates, upgrades at once, schedules a downgrade or does nothing. Lago decides which by the yearly
amount (lago.md 5.1). Every write is therefore checked in its own response. If Lago decided otherwise than requested,
the change is canceled where possible, and rejected. A subscription at a price of its own is on another plan under the
same code, and a POST of that code would move it to the list price (B12). So it is read before each POST, and its own
code is never sent. An upgrade carries a planned end on (lago.md 5.1), so with one an operator decides.

Lago refuses a second subscription beside one that waits for its first payment, and ends none on request (lago.md 5.4).
So that one is read only after such a refusal, and an end is repeated until the wait is over.

A subscription that somebody ended in Lago is created again by the next change of its plan, not when a scheduled plan
becomes due.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Final, NamedTuple

from lago_python_client.models import Subscription as SubscriptionBody
from lago_python_client.models.subscription import SubscriptionResponse

from core.catalog.plans import EndingPolicy
from core.compare.arrangements import plan_change_conflict
from core.ports.arrangement import Arrangement
from core.ports.errors import NotYetAllowedError, RejectedError, UnavailableError
from core.ports.planned import PaymentChange, PlannedPrice, PlannedStep, StepKind
from core.ports.provider import AttemptContext, Subscription
from core.ports.spec import LastKnown, SubscriptionSpec
from providers.lago import planned_steps
from providers.lago.adoption import refuse_other_plan, refuse_other_price, sells_again
from providers.lago.client import (
    LagoClient,
    LagoRequest,
    operation_of,
    parse_period_end,
    parse_time,
    unreadable_error,
)
from providers.lago.minor_units import LAGO_UNITS
from providers.lago.plans import LagoPlans
from providers.transport.safe_ids import printable

# Without the brackets Lago ignores the filter and lists the active ones only (lago.md 5.3).
LIVE_STATUSES: Final = ["active", "pending", "incomplete"]
ACTIVE: Final[dict[str, str | list[str]]] = {}
PENDING: Final[dict[str, str | list[str]]] = {"status": "pending"}
WAITING: Final[dict[str, str | list[str]]] = {"status": "incomplete"}
# A scheduled plan is created long before it starts. A change that Lago makes at once starts when it is created.
IMMEDIATE_START_WITHIN = timedelta(seconds=60)


class _SubscriptionName(NamedTuple):
    """``org_id`` is what messages say; ``external_id`` is what Lago knows."""

    org_id: str
    external_id: str


class LagoSubscription(SubscriptionResponse):
    """``upgrade_waits``: the plan that Lago shows as the next one waits for its first payment, so it is none here."""

    upgrade_waits: bool = False


class LagoSubscriptions:
    def __init__(self, client: LagoClient, ending: EndingPolicy, plans: LagoPlans) -> None:
        self._client = client
        self._ending = ending
        self._plans = plans

    def ensure(self, spec: SubscriptionSpec, last_known: LastKnown, attempt: AttemptContext) -> Subscription:
        """One call creates; two read, and upgrade, schedule a downgrade or cancel one. A third reads a plan's price."""
        if spec.next_plan_code in (None, spec.plan_code):
            return self._ensure_current_plan(spec, last_known, attempt)
        return self._ensure_current_and_next_plan(spec, last_known, attempt)

    def end(self, last_known: LastKnown, org_id: str, attempt: AttemptContext) -> None:
        """End the active subscription together with its scheduled plan, or else cancel one that has not started.

        Raises ``NotYetAllowedError`` while one waits for its first payment.
        """
        name = _SubscriptionName(org_id, last_known.external_ids.subscription_of(org_id))
        self._refuse_to_end_another(name, last_known, attempt)
        if self._terminate(name, attempt) or self._cancel_pending(name, attempt) is not None:
            return
        self._refuse_waiting(name, attempt)
        # What waited, or was to start, may have become active between these requests.
        self._terminate(name, attempt)

    def _refuse_to_end_another(self, name: _SubscriptionName, last_known: LastKnown, attempt: AttemptContext) -> None:
        """An id that was not made here may be given to another customer once its subscription has ended."""
        if name.external_id == name.org_id:
            return
        for status in (ACTIVE, PENDING):
            found = self._get(name, status, attempt)
            if found is not None and found.lago_customer_id != last_known.customer_id:
                raise _rejection(
                    name.org_id,
                    f"the subscription with its external id in Lago, {found.lago_id}, belongs to another customer, so "
                    "it was not ended; check in Lago that the organization pays for nothing",
                )

    def _terminate(self, name: _SubscriptionName, attempt: AttemptContext) -> bool:
        """Whether there was an active one."""
        attempt.before_change(lambda: self._planned_end(name, attempt))
        request = self._delete_request(
            name,
            {
                "on_termination_invoice": self._ending.lago_invoice,
                "on_termination_credit_note": self._ending.lago_credit_note,
            },
        )
        ended = self._client.send_or_none("subscription_not_found", request, attempt)
        if ended is not None and ended.status != "terminated":
            sentence = f"Lago reports {ended.status} after the request to end it; check Lago, then retry"
            raise _rejection(name.org_id, sentence)
        return ended is not None

    def _ensure_current_plan(
        self, spec: SubscriptionSpec, last_known: LastKnown, attempt: AttemptContext
    ) -> Subscription:
        # A customer that was just created has no subscription.
        may_exist = last_known.customer_id is not None or last_known.maybe_older
        found = self._read(spec, attempt) if may_exist else None
        if found is not None:
            spec = spec.as_sold(found.plan_code, found.next_plan_code)
            refuse_other_plan(spec, last_known, found)
            if _follows_later(spec, found):
                return _to_scheduled_subscription(spec.org_id, found)
            _refuse_arranged(spec, found)
        if found is None or found.plan_code != spec.plan_code:
            found = self._change_immediately(spec, last_known, found, attempt)
        if _follows_later(spec, found):
            return _to_scheduled_subscription(spec.org_id, found)
        return self._without_next_plan(spec, found, attempt)

    def _ensure_current_and_next_plan(
        self, spec: SubscriptionSpec, last_known: LastKnown, attempt: AttemptContext
    ) -> Subscription:
        found = self._read(spec, attempt)
        if found is None and _was_scheduled(spec, last_known):
            raise _rejection(
                spec.org_id,
                f"it was ended in Lago, not by us, before {spec.next_plan_code} took effect, so it is not charged "
                f"again automatically; `billing-sync retry {spec.org_id}` creates it again",
            )
        if found is not None:
            spec = spec.as_sold(found.plan_code, found.next_plan_code)
            refuse_other_plan(spec, last_known, found)
        if found is not None and _has_taken_effect(spec, last_known, found):
            if found.next_plan_code is not None:
                _refuse_arranged(spec, found)
            return self._without_next_plan(spec, found, attempt)
        if found is not None:
            _refuse_arranged(spec, found)
        if found is not None and _is_to_be_scheduled(spec, last_known) and found.plan_code == spec.next_plan_code:
            return self._checked_schedule(spec, found, attempt)
        if found is None or found.plan_code != spec.plan_code:
            found = self._change_immediately(spec, last_known, found, attempt)
        if found.next_plan_code == spec.next_plan_code:
            return _to_scheduled_subscription(spec.org_id, found)
        _refuse_immediate_downgrade(spec, found)
        payment = _payment_change(spec, found.plan_code, spec.next_plan_code, at_period_end=True)
        attempt.before_change(partial(self._planned_schedule, spec, found, attempt), payment)
        return self._checked_schedule(spec, self._post(spec, spec.next_plan_code, found, attempt), attempt)

    def _change_immediately(
        self, spec: SubscriptionSpec, last_known: LastKnown, found: LagoSubscription | None, attempt: AttemptContext
    ) -> LagoSubscription:
        ours = {None, last_known.next_plan_code, *last_known.replaced_next_plan_codes}
        if found is not None and found.next_plan_code not in ours:
            raise _rejection(
                spec.org_id,
                f"it is on {found.plan_code} in Lago, and someone else scheduled {found.next_plan_code}; any change "
                f"would cancel that; set it to {spec.plan_code} in Lago or cancel the scheduled plan, then retry",
            )
        if found is not None and sells_again(spec, last_known):
            refuse_other_price(spec, last_known, found, self._plans.find(spec.plan_code, attempt))
        payment = _payment_change(spec, found.plan_code, spec.plan_code) if found is not None else None
        attempt.before_change(lambda: self._planned_change(spec, found, attempt), payment)
        response = self._post(spec, spec.plan_code, found, attempt)
        if response.plan_code == spec.plan_code or _follows_later(spec, response):
            return response
        if response.next_plan_code == spec.plan_code:
            self._cancel_pending(_name_of(spec), attempt)
        raise _later_rejection(spec, response.plan_code)

    def _checked_schedule(
        self, spec: SubscriptionSpec, response: LagoSubscription, attempt: AttemptContext
    ) -> Subscription:
        follows_later = spec.charged_by_other_provider and response.plan_code != spec.next_plan_code
        if (response.plan_code == spec.plan_code or follows_later) and response.next_plan_code == spec.next_plan_code:
            return _to_scheduled_subscription(spec.org_id, response)
        if response.plan_code == spec.next_plan_code and not _started_immediately(response):  # it took effect
            return self._without_next_plan(spec, response, attempt)
        if response.plan_code == spec.next_plan_code:
            raise _rejection(
                spec.org_id,
                f"Lago changed it to {spec.next_plan_code} immediately instead of at period end, because that plan "
                "costs no less per year or no subscription was active; see `billing-sync plans check`",
            )
        raise _rejection(
            spec.org_id,
            f"requested {spec.plan_code} and then {spec.next_plan_code}, but Lago returned {response.plan_code} and "
            f"then {response.next_plan_code}; check Lago, then retry",
        )

    def _without_next_plan(
        self, spec: SubscriptionSpec, response: LagoSubscription, attempt: AttemptContext
    ) -> Subscription:
        if response.next_plan_code is not None:
            payment = _payment_change(spec, response.next_plan_code, response.plan_code, at_period_end=True)
            attempt.before_change(lambda: self._planned_cancellation(response, attempt), payment)
        if response.next_plan_code is not None and self._cancel_pending(_name_of(spec), attempt) is None:
            if response.downgrade_plan_date is None:
                raise _no_date_rejection(spec.org_id, response)
            # It may have taken effect between the two responses. The next attempt starts from the state at that time.
            message = f"subscription {spec.org_id}: it changed in Lago during the update"
            raise UnavailableError("lago", message)
        return replace(_to_subscription(response), next_plan_code=None, next_plan_at=None)

    def _planned_change(
        self, spec: SubscriptionSpec, found: LagoSubscription | None, attempt: AttemptContext
    ) -> list[PlannedStep]:
        """The change to the plan, and then to the next one. Raises what Lago's answer would be refused for."""
        new = self._plans.find(spec.plan_code, attempt)
        if new is None:
            raise _rejection(spec.org_id, f"Lago has no plan {spec.plan_code}; run `billing-sync plans push`")
        price = planned_steps.paid(None, new)
        if found is None:
            steps = [PlannedStep(kind="create_subscription", after=spec.plan_code, price_after=price)]
            changed = None
        else:
            current = self._plans.find(found.plan_code or "", attempt)
            is_immediate = planned_steps.is_immediate(found.plan_amount_cents, current, new)
            if not (is_immediate or spec.charged_by_other_provider):
                raise _later_rejection(spec, found.plan_code)
            kind: StepKind = "change_plan" if is_immediate else "schedule_plan"
            steps = [
                PlannedStep(
                    kind=kind,
                    object_id=found.lago_id,
                    before=found.plan_code,
                    after=spec.plan_code,
                    price_before=planned_steps.paid(found.plan_amount_cents, current),
                    price_after=price,
                    at_period_end=not is_immediate,
                )
            ]
            if found.next_plan_code is not None:
                steps = [*self._planned_cancellation(found, attempt), *steps]
            changed = found
        if spec.next_plan_code in {None, spec.plan_code} or steps[-1].kind == "schedule_plan":
            return steps
        return [*steps, *self._planned_schedule(spec, changed, attempt, paid=price)]

    def _planned_schedule(
        self,
        spec: SubscriptionSpec,
        found: LagoSubscription | None,
        attempt: AttemptContext,
        paid: PlannedPrice | None = None,
    ) -> list[PlannedStep]:
        """``paid``: after a change that is planned; None: what is paid for the plan that it has."""
        new = self._plans.find(spec.next_plan_code or "", attempt)
        if new is None:
            raise _rejection(spec.org_id, f"Lago has no plan {spec.next_plan_code}; run `billing-sync plans push`")
        steps: list[PlannedStep] = []
        if paid is None and found is not None:
            if found.next_plan_code is not None:
                steps = self._planned_cancellation(found, attempt)
            paid = planned_steps.paid(found.plan_amount_cents, self._plans.find(found.plan_code or "", attempt))
        period_end = found.current_billing_period_ending_at if found is not None else None
        step = PlannedStep(
            kind="schedule_plan",
            object_id=found.lago_id if found is not None else None,
            before=spec.plan_code,
            after=spec.next_plan_code,
            price_before=paid,
            price_after=planned_steps.paid(None, new),
            at_period_end=True,
            effective_at=parse_period_end(f"subscription {spec.org_id}", period_end) if period_end else None,
        )
        return [*steps, step]

    def _planned_cancellation(self, found: LagoSubscription, attempt: AttemptContext) -> list[PlannedStep]:
        next_plan = self._plans.find(found.next_plan_code or "", attempt)
        current = self._plans.find(found.plan_code or "", attempt)
        return [
            PlannedStep(
                kind="cancel_scheduled_plan",
                object_id=found.lago_id,
                before=found.next_plan_code,
                after=found.plan_code,
                price_before=planned_steps.paid(None, next_plan),
                price_after=planned_steps.paid(found.plan_amount_cents, current),
            )
        ]

    def _planned_end(self, name: _SubscriptionName, attempt: AttemptContext) -> list[PlannedStep]:
        found = self._get(name, ACTIVE, attempt) or self._get(name, PENDING, attempt)
        if found is None:
            self._refuse_waiting(name, attempt)
            return []
        current = self._plans.find(found.plan_code or "", attempt)
        paid = planned_steps.paid(found.plan_amount_cents, current)
        return [
            PlannedStep(kind="end_subscription", object_id=found.lago_id, before=found.plan_code, price_before=paid)
        ]

    def _read(self, spec: SubscriptionSpec, attempt: AttemptContext) -> LagoSubscription | None:
        found = self._get(_name_of(spec), ACTIVE, attempt)
        if found is None:
            return None
        _verify_ours(spec, found)
        has_no_date = found.next_plan_code is not None and found.downgrade_plan_date is None
        if has_no_date and self._get(_name_of(spec), WAITING, attempt) is not None:
            return found.copy(update={"next_plan_code": None, "upgrade_waits": True})
        return found

    def _get(
        self, name: _SubscriptionName, params: dict[str, str | list[str]], attempt: AttemptContext
    ) -> LagoSubscription | None:
        request = LagoRequest(
            context=f"subscription {name.org_id}",
            method="GET",
            path=("subscriptions", name.external_id),
            root="subscription",
            response_type=LagoSubscription,
            params=params,
        )
        return self._client.send_or_none("subscription_not_found", request, attempt)

    def _post(
        self, spec: SubscriptionSpec, plan_code: str | None, current: LagoSubscription | None, attempt: AttemptContext
    ) -> LagoSubscription:
        """Raises ``ConflictError`` if the one that Lago makes waits for a payment, or another one does.

        Lago would charge the payer of a subscription that is paid manually after its next plan change (lago.md 5.5).
        """
        body: dict[str, object] = {
            "external_customer_id": spec.external_ids.customer_of(spec.org_id),
            "external_id": spec.external_ids.subscription_of(spec.org_id),
            "plan_code": plan_code,
        }
        if current is not None and is_paid_manually(current):
            body["payment_method"] = {"payment_method_type": "manual"}
        request = LagoRequest(
            context=f"subscription {spec.org_id} on plan {plan_code}",
            method="POST",
            path=("subscriptions",),
            root="subscription",
            response_type=LagoSubscription,
            body=SubscriptionBody.parse_obj(body),
        )
        attempt.acquire_permit_ahead(operation_of(request))
        attempt.record_subscription_request()
        made = self._client.send_or_none("subscription:subscription_incomplete", request, attempt)
        if made is None:
            return self._waiting(spec, attempt)
        if made.status == "incomplete":
            raise plan_change_conflict("lago", spec, made.lago_id, Arrangement(waits_for_payment=True))
        return _verify_ours(spec, made)

    def _waiting(self, spec: SubscriptionSpec, attempt: AttemptContext) -> LagoSubscription:
        """Ours that waits for its first payment. Raises ``ConflictError`` if it is to become something else."""
        found = self._get(_name_of(spec), WAITING, attempt)
        if found is None:
            message = f"subscription {spec.org_id}: it changed in Lago during the update"
            raise UnavailableError("lago", message)
        _verify_ours(spec, found, status="incomplete")
        _refuse_arranged(spec, found)
        return found

    def _refuse_waiting(self, name: _SubscriptionName, attempt: AttemptContext) -> None:
        if self._get(name, WAITING, attempt) is not None:
            message = (
                f"subscription {name.org_id}: it waits for its first payment, and Lago ends it only after that is "
                "paid, has failed or has expired; to end it sooner, cancel the payment in Stripe"
            )
            raise NotYetAllowedError("lago", message, "subscription_incomplete")

    def _cancel_pending(self, name: _SubscriptionName, attempt: AttemptContext) -> LagoSubscription | None:
        """Cancel a scheduled plan or a subscription that has not started; None if there is neither.

        Posting the current plan would not cancel it (lago.md 5.1).
        """
        canceled = self._client.send_or_none("subscription_not_found", self._delete_request(name, PENDING), attempt)
        if canceled is not None and canceled.status != "canceled":
            sentence = f"Lago reports {canceled.status} after the request to cancel it; check Lago"
            raise _rejection(name.org_id, sentence)
        return canceled

    def _delete_request(
        self, name: _SubscriptionName, params: dict[str, str | list[str]]
    ) -> LagoRequest[LagoSubscription]:
        return LagoRequest(
            context=f"subscription {name.org_id}",
            method="DELETE",
            path=("subscriptions", name.external_id),
            root="subscription",
            response_type=LagoSubscription,
            params=params,
        )


def _payment_change(
    spec: SubscriptionSpec, before: str | None, after: str | None, *, at_period_end: bool = False
) -> PaymentChange | None:
    """None: nobody pays for it in Lago."""
    if spec.charged_by_other_provider:
        return None
    return PaymentChange(kind="plan", before=before, after=after, at_period_end=at_period_end)


def _name_of(spec: SubscriptionSpec) -> _SubscriptionName:
    return _SubscriptionName(spec.org_id, spec.external_ids.subscription_of(spec.org_id))


def _verify_ours(spec: SubscriptionSpec, response: LagoSubscription, status: str = "active") -> LagoSubscription:
    ids = (spec.external_ids.customer_of(spec.org_id), spec.external_ids.subscription_of(spec.org_id))
    if (response.external_customer_id, response.external_id) != ids:
        raise _rejection(spec.org_id, f"Lago returned a subscription of another customer ({response.lago_id})")
    if response.lago_customer_id != spec.customer_id:
        # POST /subscriptions creates a bare customer if it finds none (lago.md 5.1).
        raise _rejection(
            spec.org_id,
            f"it belongs to customer {response.lago_customer_id} in Lago, not to {spec.customer_id}, which was "
            "deleted; decide which one to keep",
        )
    if response.status != status:
        raise _rejection(spec.org_id, f"it is {response.status} in Lago, not active; correct it in Lago, then retry")
    _to_subscription(response)  # raises if a field is missing, before anything relies on it
    return response


def _to_subscription(response: LagoSubscription) -> Subscription:
    context = f"subscription {printable(response.external_id)}"
    if response.plan_code is None:
        raise unreadable_error(context, "plan_code")
    return Subscription(
        id=response.lago_id,
        plan_code=response.plan_code,
        next_plan_code=response.next_plan_code,
        next_plan_at=_next_plan_at(context, response),
        price_id=None if response.plan_amount_cents is None else str(response.plan_amount_cents),
        arrangement=arrangement_of(response),
    )


def _next_plan_at(context: str, response: LagoSubscription) -> datetime | None:
    """The end of the billing period, when Lago changes the plan (lago.md 5.1).

    ``downgrade_plan_date`` is a day without a time: for a customer with a time zone up to 19 hours late (B16), and the
    end of the year where a yearly plan bills its charges each month (B9).
    """
    if response.downgrade_plan_date is None:
        return None
    if response.current_billing_period_ending_at is None:
        return parse_time(context, response.downgrade_plan_date)
    return parse_period_end(context, response.current_billing_period_ending_at)


def arrangement_of(response: LagoSubscription) -> Arrangement | None:
    """Lago has no pause and no schedule."""
    ends = response.ending_at
    ends_at = parse_time(f"subscription {printable(response.external_id)}", ends) if ends is not None else None
    waits = response.status == "incomplete" or response.upgrade_waits
    return Arrangement(ends_at=ends_at, waits_for_payment=waits) if waits or ends_at is not None else None


def is_paid_manually(response: LagoSubscription) -> bool:
    return response.payment_method is not None and response.payment_method.payment_method_type == "manual"


def _refuse_arranged(spec: SubscriptionSpec, found: LagoSubscription) -> None:
    """Call before a write. Raises ``ConflictError`` if there is something to write to a subscription that ends."""
    next_plan_code = spec.next_plan_code if spec.next_plan_code != spec.plan_code else None
    arrangement = arrangement_of(found)
    if arrangement is not None and (found.plan_code, found.next_plan_code) != (spec.plan_code, next_plan_code):
        raise plan_change_conflict("lago", spec, found.lago_id, arrangement)


def _follows_later(spec: SubscriptionSpec, found: LagoSubscription) -> bool:
    """Where Stripe charges, its period may end first. Lago then changes to the same plan on its own date."""
    return spec.charged_by_other_provider and found.next_plan_code == spec.plan_code


def _refuse_immediate_downgrade(spec: SubscriptionSpec, found: LagoSubscription) -> None:
    """At a price of its own, the plan may cost less than the next one. Lago would take that for an upgrade."""
    is_behind = spec.charged_by_other_provider and found.plan_code != spec.plan_code
    if (
        is_behind
        or spec.next_plan_amount is None
        or found.plan_amount_cents is None
        or found.plan_amount_currency is None
    ):
        return
    currency = found.plan_amount_currency
    amount = LAGO_UNITS.from_provider(int(found.plan_amount_cents), currency)
    if amount > spec.next_plan_amount:
        return
    paid = LAGO_UNITS.text(int(found.plan_amount_cents), currency)
    raise _rejection(
        spec.org_id,
        f"it pays {paid} for {found.plan_code} in Lago, no more than for {spec.next_plan_code}, so Lago would "
        "change it now and charge more; nothing was sent: leave the organization on its plan, or change the plan in "
        f"Lago and run `billing-sync retry {spec.org_id}`",
    )


def _to_scheduled_subscription(org_id: str, response: LagoSubscription) -> Subscription:
    """Lago may name no date (lago.md 5.1). Nothing here would then show when the plan changes, or check that it did."""
    if response.downgrade_plan_date is None:
        raise _no_date_rejection(org_id, response)
    return _to_subscription(response)


def _later_rejection(spec: SubscriptionSpec, plan_code: str | None) -> RejectedError:
    return _rejection(
        spec.org_id,
        f"it is on {plan_code} in Lago, which costs more per year, so Lago would change to {spec.plan_code} only at "
        "period end; that change was canceled; see `billing-sync plans check`",
    )


def _no_date_rejection(org_id: str, response: LagoSubscription) -> RejectedError:
    sentence = (
        f"it goes on to {response.next_plan_code} in Lago, which names no date: this Lago organization uses the "
        f"product catalog, which is not supported; cancel the change in Lago, then run `billing-sync retry {org_id}`"
    )
    return _rejection(org_id, sentence)


def _has_taken_effect(spec: SubscriptionSpec, last_known: LastKnown, found: LagoSubscription) -> bool:
    """Whether a scheduled plan has taken effect in Lago, which gives the subscription a new id.

    Our row may have replaced it with another plan before we learned that it took effect. It counts then too: going back
    to the first plan would charge for a period that nobody requested.

    A new id that is known already was ordered by us since, unless Stripe charges: until the plan takes effect there, an
    earlier attempt may have stored the id.
    """
    if _is_to_be_scheduled(spec, last_known) and _started_immediately(found):
        return False
    is_desired_schedule = found.plan_code == spec.next_plan_code and found.previous_plan_code == spec.plan_code
    if found.lago_id == last_known.subscription_id:
        return is_desired_schedule and spec.charged_by_other_provider
    is_last_known_schedule = last_known.next_plan_code is not None and found.plan_code == last_known.next_plan_code
    # A write of ours that has no answer may have made such a plan the current one at once. That one was not scheduled.
    was_replaced = found.plan_code in last_known.replaced_next_plan_codes and not _started_immediately(found)
    return is_last_known_schedule or was_replaced or is_desired_schedule


def _is_to_be_scheduled(spec: SubscriptionSpec, last_known: LastKnown) -> bool:
    """Whether nothing was sent yet of the next plan, as far as we know. Lago may have applied it at once."""
    return (last_known.plan_code, last_known.next_plan_code) == (spec.plan_code, None)


def _was_scheduled(spec: SubscriptionSpec, last_known: LastKnown) -> bool:
    """Whether only the scheduled plan is awaited: nobody changed the plan in our row, and nobody retries."""
    scheduled = last_known.subscription_id is not None and last_known.next_plan_code == spec.next_plan_code
    return scheduled and last_known.confirmed and not last_known.ending_started


def _started_immediately(response: LagoSubscription) -> bool:
    if response.created_at is None or response.started_at is None:
        return True
    context = f"subscription {printable(response.external_id)}"
    return parse_time(context, response.started_at) - parse_time(context, response.created_at) < IMMEDIATE_START_WITHIN


def _rejection(org_id: str, sentence: str) -> RejectedError:
    message = f"subscription {org_id}: {sentence}"
    return RejectedError("lago", message)
