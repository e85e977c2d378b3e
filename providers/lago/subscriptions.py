"""One Lago subscription for an organization, under ``external_id`` = organization id, for ever.

POST /subscriptions creates, upgrades now, schedules a downgrade or does nothing, as Lago judges by yearly amount
(lago.md 5.1). So every write is checked in its own answer, and what Lago judged otherwise than we asked is taken
back where it can be, and rejected. A subscription that somebody ended in Lago is made again by the next change of
its plan, not by the day of one that was to come.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from lago_python_client.models import Subscription as SubscriptionBody
from lago_python_client.models.subscription import SubscriptionResponse

from core.catalog.plans import EndingPolicy
from core.ports.errors import RejectedError, UnavailableError
from core.ports.provider import AttemptContext, Subscription
from core.ports.spec import LastKnown, SubscriptionSpec
from providers.lago.client import LagoClient, LagoRequest, parse_time, unreadable_error

# A scheduled plan is written down long before it starts; one that Lago makes at once starts when it is written.
IMMEDIATE_START_WITHIN = timedelta(seconds=60)


class LagoSubscriptions:
    def __init__(self, client: LagoClient, ending: EndingPolicy) -> None:
        self._client = client
        self._ending = ending

    def ensure(self, spec: SubscriptionSpec, last_known: LastKnown, attempt: AttemptContext) -> Subscription:
        """One call to create, to upgrade, to schedule a downgrade or to take one back.

        Lago's state is read first where ``known`` may not be it: on a customer that was there before us, and where
        a scheduled plan may have taken effect.
        """
        if spec.next_plan_code in (None, spec.plan_code):
            return self._ensure_current_plan(spec, last_known, attempt)
        if (last_known.plan_code, last_known.next_plan_code) == (spec.plan_code, None):
            response = self._post(spec, spec.next_plan_code, attempt)
            if response.plan_code in (spec.plan_code, spec.next_plan_code):
                return self._checked_schedule(spec, response, attempt)
        return self._ensure_current_and_next_plan(spec, last_known, attempt)

    def end(self, org_id: str, attempt: AttemptContext) -> None:
        """End the active subscription, its scheduled plan with it, or else one that has not begun."""
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
            raise _rejection(org_id, f"Lago answers {ended.status} to its end; look there, then retry")

    def _ensure_current_plan(
        self, spec: SubscriptionSpec, last_known: LastKnown, attempt: AttemptContext
    ) -> Subscription:
        scheduled = last_known.next_plan_code is not None and last_known.plan_code == spec.plan_code
        if scheduled and last_known.subscription_id is not None:
            canceled = self._cancel_pending(spec.org_id, attempt)
            if canceled is not None and canceled.previous_plan_code == spec.plan_code:
                return Subscription(id=last_known.subscription_id, plan_code=spec.plan_code)
        found = (
            self._read(spec, attempt) if last_known.customer_id is not None and last_known.plan_code is None else None
        )
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
                f"it ended in Lago, and not by us, before {spec.next_plan_code} came, so nothing is charged again by "
                f"itself: `billing-sync retry {spec.org_id}` makes it again",
            )
        if found is not None and _has_taken_effect(spec, last_known, found):
            return self._without_next_plan(spec, found, attempt)
        if found is None or found.plan_code != spec.plan_code:
            found = self._change_immediately(spec, last_known, found, attempt)
        if found.next_plan_code == spec.next_plan_code:
            return _to_subscription(found)
        return self._checked_schedule(spec, self._post(spec, spec.next_plan_code, attempt), attempt)

    def _change_immediately(
        self, spec: SubscriptionSpec, last_known: LastKnown, found: SubscriptionResponse | None, attempt: AttemptContext
    ) -> SubscriptionResponse:
        if found is not None and found.next_plan_code not in (None, last_known.next_plan_code):
            raise _rejection(
                spec.org_id,
                f"it is on {found.plan_code} in Lago and goes to {found.next_plan_code} there, which is not of our "
                f"making; any change would undo that; make it {spec.plan_code} there or take it back, then retry",
            )
        response = self._post(spec, spec.plan_code, attempt)
        if response.plan_code == spec.plan_code:
            return response
        if response.next_plan_code == spec.plan_code:
            self._cancel_pending(spec.org_id, attempt)
        raise _rejection(
            spec.org_id,
            f"it is on {response.plan_code} in Lago, which costs more a year there, so Lago would change to "
            f"{spec.plan_code} only at period end; that was taken back; see `billing-sync plans check`",
        )

    def _checked_schedule(
        self, spec: SubscriptionSpec, response: SubscriptionResponse, attempt: AttemptContext
    ) -> Subscription:
        if (response.plan_code, response.next_plan_code) == (spec.plan_code, spec.next_plan_code):
            return _to_subscription(response)
        if response.plan_code == spec.next_plan_code and not _started_immediately(response):  # it took effect
            return self._without_next_plan(spec, response, attempt)
        if response.plan_code == spec.next_plan_code:
            raise _rejection(
                spec.org_id,
                f"Lago moved it to {spec.next_plan_code} at once and not at period end, because it costs no less a "
                "year there or nothing was active; see `billing-sync plans check`",
            )
        raise _rejection(
            spec.org_id,
            f"asked for {spec.plan_code} and then {spec.next_plan_code}, Lago answers {response.plan_code} and then "
            f"{response.next_plan_code}; look there, then retry",
        )

    def _without_next_plan(
        self, spec: SubscriptionSpec, response: SubscriptionResponse, attempt: AttemptContext
    ) -> Subscription:
        if response.next_plan_code is not None and self._cancel_pending(spec.org_id, attempt) is None:
            # It may have taken effect between the two answers: the next try begins with what is there then.
            message = f"subscription {spec.org_id}: it changed in Lago while it was being changed"
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
        """Cancel what is scheduled or has not begun; None if there is no such thing.

        Posting the current plan would not do it (lago.md 5.1).
        """
        canceled = self._client.send_or_none(
            "subscription_not_found", self._delete_request(org_id, {"status": "pending"}), attempt
        )
        if canceled is not None and canceled.status != "canceled":
            raise _rejection(org_id, f"Lago answers {canceled.status} to taking the scheduled plan back; look there")
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
        raise _rejection(spec.org_id, f"Lago answers with a subscription of another customer ({response.lago_id})")
    if response.lago_customer_id != spec.customer_id:
        # POST /subscriptions makes a bare customer where it finds none (lago.md 5.1).
        raise _rejection(
            spec.org_id,
            f"it is on Lago's customer {response.lago_customer_id}, not on {spec.customer_id}, which was "
            "deleted there; "
            "decide which of them stays",
        )
    if response.status != "active":
        raise _rejection(spec.org_id, f"it is {response.status} in Lago, not active; settle it there, then retry")
    _to_subscription(response)  # before anything is built on an answer that cannot be read
    return response


def _to_subscription(response: SubscriptionResponse) -> Subscription:
    context = f"subscription {response.external_id}"
    if response.plan_code is None:
        raise unreadable_error(context, "plan_code")
    return Subscription(
        id=response.lago_id,
        plan_code=response.plan_code,
        next_plan_code=response.next_plan_code,
        next_plan_at=parse_time(context, response.downgrade_plan_date) if response.next_plan_code else None,
    )


def _has_taken_effect(spec: SubscriptionSpec, last_known: LastKnown, found: SubscriptionResponse) -> bool:
    """Whether Lago has made a scheduled change, which gives the subscription a new row.

    It may be one that was replaced here by another before we learned that it came: then too what is in effect counts,
    and going back to the first plan would charge for a period that was never asked for.
    """
    if found.lago_id == last_known.subscription_id:
        return False
    is_last_known_schedule = last_known.next_plan_code is not None and found.plan_code == last_known.next_plan_code
    is_desired_schedule = found.plan_code == spec.next_plan_code and found.previous_plan_code == spec.plan_code
    return is_last_known_schedule or is_desired_schedule


def _was_scheduled(spec: SubscriptionSpec, last_known: LastKnown) -> bool:
    """Whether the question is only if the scheduled plan came: nobody changed a plan here, and nobody retries."""
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
