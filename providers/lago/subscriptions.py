"""One Lago subscription per organization, always under ``external_id`` = organization id.

POST /subscriptions creates, upgrades at once, schedules a downgrade or does nothing. Lago decides which by the yearly
amount (lago.md 5.1). Every write is therefore checked in its own response. If Lago decided otherwise than requested,
the change is canceled where possible, and rejected. A subscription at a price of its own is on another plan under the
same code, and a POST of that code would move it to the list price (B12). So it is read before each POST, and its own
code is never sent. An upgrade carries a planned end on (lago.md 5.1), so with one an operator decides.

A subscription that somebody ended in Lago is created again by the next change of its plan, not when a scheduled plan
becomes due.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from lago_python_client.models import Subscription as SubscriptionBody
from lago_python_client.models.subscription import SubscriptionResponse

from core.catalog.plans import EndingPolicy
from core.compare.arrangements import plan_change_conflict
from core.ports.arrangement import Arrangement
from core.ports.errors import RejectedError, UnavailableError
from core.ports.provider import AttemptContext, Subscription
from core.ports.spec import LastKnown, SubscriptionSpec
from providers.lago.adoption import refuse_other_plan
from providers.lago.client import LagoClient, LagoRequest, parse_time, unreadable_error

# A scheduled plan is created long before it starts. A change that Lago makes at once starts when it is created.
IMMEDIATE_START_WITHIN = timedelta(seconds=60)


class LagoSubscriptions:
    def __init__(self, client: LagoClient, ending: EndingPolicy) -> None:
        self._client = client
        self._ending = ending

    def ensure(self, spec: SubscriptionSpec, last_known: LastKnown, attempt: AttemptContext) -> Subscription:
        """One call creates; two read, and upgrade, schedule a downgrade or cancel one."""
        if spec.next_plan_code in (None, spec.plan_code):
            return self._ensure_current_plan(spec, last_known, attempt)
        return self._ensure_current_and_next_plan(spec, last_known, attempt)

    def end(self, org_id: str, attempt: AttemptContext) -> None:
        """End the active subscription together with its scheduled plan, or else cancel one that has not started."""
        request = self._delete_request(
            org_id,
            {
                "on_termination_invoice": self._ending.lago_invoice,
                "on_termination_credit_note": self._ending.lago_credit_note,
            },
        )
        ended = self._client.send_or_none("subscription_not_found", request, attempt)
        if ended is None:
            self._cancel_pending(org_id, attempt)
        elif ended.status != "terminated":
            raise _rejection(org_id, f"Lago reports {ended.status} after the request to end it; check Lago, then retry")

    def _ensure_current_plan(
        self, spec: SubscriptionSpec, last_known: LastKnown, attempt: AttemptContext
    ) -> Subscription:
        # A customer that was just created has no subscription.
        may_exist = last_known.customer_id is not None or last_known.maybe_older
        found = self._read(spec, attempt) if may_exist else None
        if found is not None:
            spec = spec.as_sold(found.plan_code, found.next_plan_code)
            refuse_other_plan(spec, last_known, found)
            _refuse_arranged(spec, found)
        if found is None or found.plan_code != spec.plan_code:
            found = self._change_immediately(spec, last_known, found, attempt)
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
        return self._checked_schedule(spec, self._post(spec, spec.next_plan_code, attempt), attempt)

    def _change_immediately(
        self, spec: SubscriptionSpec, last_known: LastKnown, found: SubscriptionResponse | None, attempt: AttemptContext
    ) -> SubscriptionResponse:
        if found is not None and found.next_plan_code not in (None, last_known.next_plan_code):
            raise _rejection(
                spec.org_id,
                f"it is on {found.plan_code} in Lago, and someone else scheduled {found.next_plan_code}; any change "
                f"would cancel that; set it to {spec.plan_code} in Lago or cancel the scheduled plan, then retry",
            )
        response = self._post(spec, spec.plan_code, attempt)
        if response.plan_code == spec.plan_code:
            return response
        if response.next_plan_code == spec.plan_code:
            self._cancel_pending(spec.org_id, attempt)
        raise _rejection(
            spec.org_id,
            f"it is on {response.plan_code} in Lago, which costs more per year, so Lago would change to "
            f"{spec.plan_code} only at period end; that change was canceled; see `billing-sync plans check`",
        )

    def _checked_schedule(
        self, spec: SubscriptionSpec, response: SubscriptionResponse, attempt: AttemptContext
    ) -> Subscription:
        if (response.plan_code, response.next_plan_code) == (spec.plan_code, spec.next_plan_code):
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
        self, spec: SubscriptionSpec, response: SubscriptionResponse, attempt: AttemptContext
    ) -> Subscription:
        if response.next_plan_code is not None and self._cancel_pending(spec.org_id, attempt) is None:
            if response.downgrade_plan_date is None:
                raise _no_date_rejection(spec.org_id, response)
            # It may have taken effect between the two responses. The next attempt starts from the state at that time.
            message = f"subscription {spec.org_id}: it changed in Lago during the update"
            raise UnavailableError("lago", message)
        return replace(_to_subscription(response), next_plan_code=None, next_plan_at=None)

    def _read(self, spec: SubscriptionSpec, attempt: AttemptContext) -> SubscriptionResponse | None:
        request = LagoRequest(
            context=f"subscription {spec.org_id}",
            method="GET",
            path=("subscriptions", spec.org_id),
            root="subscription",
            response_type=SubscriptionResponse,
        )
        found = self._client.send_or_none("subscription_not_found", request, attempt)
        return None if found is None else _verify_ours(spec, found)

    def _post(self, spec: SubscriptionSpec, plan_code: str | None, attempt: AttemptContext) -> SubscriptionResponse:
        body = {"external_customer_id": spec.org_id, "external_id": spec.org_id, "plan_code": plan_code}
        request = LagoRequest(
            context=f"subscription {spec.org_id} on plan {plan_code}",
            method="POST",
            path=("subscriptions",),
            root="subscription",
            response_type=SubscriptionResponse,
            body=SubscriptionBody.parse_obj(body),
        )
        return _verify_ours(spec, self._client.send(request, attempt))

    def _cancel_pending(self, org_id: str, attempt: AttemptContext) -> SubscriptionResponse | None:
        """Cancel a scheduled plan or a subscription that has not started; None if there is neither.

        Posting the current plan would not cancel it (lago.md 5.1).
        """
        canceled = self._client.send_or_none(
            "subscription_not_found", self._delete_request(org_id, {"status": "pending"}), attempt
        )
        if canceled is not None and canceled.status != "canceled":
            raise _rejection(org_id, f"Lago reports {canceled.status} after the request to cancel it; check Lago")
        return canceled

    def _delete_request(self, org_id: str, params: dict[str, str | list[str]]) -> LagoRequest[SubscriptionResponse]:
        return LagoRequest(
            context=f"subscription {org_id}",
            method="DELETE",
            path=("subscriptions", org_id),
            root="subscription",
            response_type=SubscriptionResponse,
            params=params,
        )


def _verify_ours(spec: SubscriptionSpec, response: SubscriptionResponse) -> SubscriptionResponse:
    if response.external_id != spec.org_id or response.external_customer_id != spec.org_id:
        raise _rejection(spec.org_id, f"Lago returned a subscription of another customer ({response.lago_id})")
    if response.lago_customer_id != spec.customer_id:
        # POST /subscriptions creates a bare customer if it finds none (lago.md 5.1).
        raise _rejection(
            spec.org_id,
            f"it belongs to customer {response.lago_customer_id} in Lago, not to {spec.customer_id}, which was "
            "deleted; decide which one to keep",
        )
    if response.status != "active":
        raise _rejection(spec.org_id, f"it is {response.status} in Lago, not active; correct it in Lago, then retry")
    _to_subscription(response)  # raises if a field is missing, before anything relies on it
    return response


def _to_subscription(response: SubscriptionResponse) -> Subscription:
    context = f"subscription {response.external_id}"
    if response.plan_code is None:
        raise unreadable_error(context, "plan_code")
    return Subscription(
        id=response.lago_id,
        plan_code=response.plan_code,
        next_plan_code=response.next_plan_code,
        next_plan_at=parse_time(context, response.downgrade_plan_date) if response.downgrade_plan_date else None,
        arrangement=arrangement_of(response),
    )


def arrangement_of(response: SubscriptionResponse) -> Arrangement | None:
    """Lago has no pause and no schedule."""
    if response.ending_at is None:
        return None
    return Arrangement(ends_at=parse_time(f"subscription {response.external_id}", response.ending_at))


def _refuse_arranged(spec: SubscriptionSpec, found: SubscriptionResponse) -> None:
    """Call before a write. Raises ``ConflictError`` if there is something to write to a subscription that ends."""
    next_plan_code = spec.next_plan_code if spec.next_plan_code != spec.plan_code else None
    arrangement = arrangement_of(found)
    if arrangement is not None and (found.plan_code, found.next_plan_code) != (spec.plan_code, next_plan_code):
        raise plan_change_conflict("lago", spec, found.lago_id, arrangement)


def _to_scheduled_subscription(org_id: str, response: SubscriptionResponse) -> Subscription:
    """Lago may name no date (lago.md 5.1). Nothing here would then show when the plan changes, or check that it did."""
    if response.downgrade_plan_date is None:
        raise _no_date_rejection(org_id, response)
    return _to_subscription(response)


def _no_date_rejection(org_id: str, response: SubscriptionResponse) -> RejectedError:
    sentence = (
        f"it goes on to {response.next_plan_code} in Lago, which names no date: that plan waits for its first payment, "
        "or this Lago organization uses the product catalog, which is not supported; complete or cancel it in Lago, "
        f"then run `billing-sync retry {org_id}`"
    )
    return _rejection(org_id, sentence)


def _has_taken_effect(spec: SubscriptionSpec, last_known: LastKnown, found: SubscriptionResponse) -> bool:
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
    return is_last_known_schedule or is_desired_schedule


def _is_to_be_scheduled(spec: SubscriptionSpec, last_known: LastKnown) -> bool:
    """Whether nothing was sent yet of the next plan, as far as we know. Lago may have applied it at once."""
    return (last_known.plan_code, last_known.next_plan_code) == (spec.plan_code, None)


def _was_scheduled(spec: SubscriptionSpec, last_known: LastKnown) -> bool:
    """Whether only the scheduled plan is awaited: nobody changed the plan in our row, and nobody retries."""
    scheduled = last_known.subscription_id is not None and last_known.next_plan_code == spec.next_plan_code
    return scheduled and last_known.confirmed and not last_known.ending_started


def _started_immediately(response: SubscriptionResponse) -> bool:
    if response.created_at is None or response.started_at is None:
        return True
    context = f"subscription {response.external_id}"
    return parse_time(context, response.started_at) - parse_time(context, response.created_at) < IMMEDIATE_START_WITHIN


def _rejection(org_id: str, sentence: str) -> RejectedError:
    message = f"subscription {org_id}: {sentence}"
    return RejectedError("lago", message)
