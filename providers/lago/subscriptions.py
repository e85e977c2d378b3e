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

from core.catalog.plans import Ending
from core.ports.errors import RejectedError, UnavailableError
from core.ports.provider import Claim, Subscription
from core.ports.spec import Known, SubscriptionSpec
from providers.lago.client import Call, LagoHttp, moment, unreadable

# A scheduled plan is written down long before it starts; one that Lago makes at once starts when it is written.
AT_ONCE = timedelta(seconds=60)


class LagoSubscriptions:
    def __init__(self, http: LagoHttp, ending: Ending) -> None:
        self._http = http
        self._ending = ending

    def make(self, spec: SubscriptionSpec, known: Known, claim: Claim) -> Subscription:
        """One call to create, to upgrade, to schedule a downgrade or to take one back.

        Lago's state is read first where ``known`` may not be it: on a customer that was there before us, and where
        a scheduled plan may have taken effect.
        """
        if spec.next_plan_code in (None, spec.plan_code):
            return self._make_now(spec, known, claim)
        if (known.plan_code, known.next_plan_code) == (spec.plan_code, None):
            answer = self._post(spec, spec.next_plan_code, claim)
            if answer.plan_code in (spec.plan_code, spec.next_plan_code):
                return self._scheduled(spec, answer, claim)
        return self._make_both(spec, known, claim)

    def end(self, org_id: str, claim: Claim) -> None:
        """End the active subscription, its scheduled plan with it, or else one that has not begun."""
        call = self._delete(
            org_id,
            {
                "on_termination_invoice": self._ending.lago_invoice,
                "on_termination_credit_note": self._ending.lago_credit_note,
            },
        )
        ended = self._http.send_unless("subscription_not_found", call, claim)
        if ended is None:
            self._take_back(org_id, claim)
        elif ended.status != "terminated":
            raise _rejected(org_id, f"Lago answers {ended.status} to its end; look there, then retry")

    def _make_now(self, spec: SubscriptionSpec, known: Known, claim: Claim) -> Subscription:
        scheduled = known.next_plan_code is not None and known.plan_code == spec.plan_code
        if scheduled and known.subscription_id is not None:
            canceled = self._take_back(spec.org_id, claim)
            if canceled is not None and canceled.previous_plan_code == spec.plan_code:
                return Subscription(id=known.subscription_id, plan_code=spec.plan_code)
        found = self._read(spec, claim) if known.customer_id is not None and known.plan_code is None else None
        if found is None or found.plan_code != spec.plan_code:
            found = self._at_once(spec, known, found, claim)
        return self._without_next(spec, found, claim)

    def _make_both(self, spec: SubscriptionSpec, known: Known, claim: Claim) -> Subscription:
        found = self._read(spec, claim)
        if found is None and _was_to_come(spec, known):
            raise _rejected(
                spec.org_id,
                f"it ended in Lago, and not by us, before {spec.next_plan_code} came, so nothing is charged again by "
                f"itself: `billing-sync retry {spec.org_id}` makes it again",
            )
        if found is not None and _took_effect(spec, known, found):
            return self._without_next(spec, found, claim)
        if found is None or found.plan_code != spec.plan_code:
            found = self._at_once(spec, known, found, claim)
        if found.next_plan_code == spec.next_plan_code:
            return _state(found)
        return self._scheduled(spec, self._post(spec, spec.next_plan_code, claim), claim)

    def _at_once(
        self, spec: SubscriptionSpec, known: Known, found: SubscriptionResponse | None, claim: Claim
    ) -> SubscriptionResponse:
        if found is not None and found.next_plan_code not in (None, known.next_plan_code):
            raise _rejected(
                spec.org_id,
                f"it is on {found.plan_code} in Lago and goes to {found.next_plan_code} there, which is not of our "
                f"making; any change would undo that; make it {spec.plan_code} there or take it back, then retry",
            )
        answer = self._post(spec, spec.plan_code, claim)
        if answer.plan_code == spec.plan_code:
            return answer
        if answer.next_plan_code == spec.plan_code:
            self._take_back(spec.org_id, claim)
        raise _rejected(
            spec.org_id,
            f"it is on {answer.plan_code} in Lago, which costs more a year there, so Lago would change to "
            f"{spec.plan_code} only at period end; that was taken back; see `billing-sync plans check`",
        )

    def _scheduled(self, spec: SubscriptionSpec, answer: SubscriptionResponse, claim: Claim) -> Subscription:
        if (answer.plan_code, answer.next_plan_code) == (spec.plan_code, spec.next_plan_code):
            return _state(answer)
        if answer.plan_code == spec.next_plan_code and not _made_at_once(answer):  # it took effect
            return self._without_next(spec, answer, claim)
        if answer.plan_code == spec.next_plan_code:
            raise _rejected(
                spec.org_id,
                f"Lago moved it to {spec.next_plan_code} at once and not at period end, because it costs no less a "
                "year there or nothing was active; see `billing-sync plans check`",
            )
        raise _rejected(
            spec.org_id,
            f"asked for {spec.plan_code} and then {spec.next_plan_code}, Lago answers {answer.plan_code} and then "
            f"{answer.next_plan_code}; look there, then retry",
        )

    def _without_next(self, spec: SubscriptionSpec, answer: SubscriptionResponse, claim: Claim) -> Subscription:
        if answer.next_plan_code is not None and self._take_back(spec.org_id, claim) is None:
            # It may have taken effect between the two answers: the next try begins with what is there then.
            message = f"subscription {spec.org_id}: it changed in Lago while it was being changed"
            raise UnavailableError("lago", message)
        return replace(_state(answer), next_plan_code=None, next_plan_at=None)

    def _read(self, spec: SubscriptionSpec, claim: Claim) -> SubscriptionResponse | None:
        call = Call(
            about=f"subscription {spec.org_id}",
            method="GET",
            path=("subscriptions", spec.org_id),
            root="subscription",
            answer=SubscriptionResponse,
        )
        found = self._http.send_unless("subscription_not_found", call, claim)
        return None if found is None else _ours(spec, found)

    def _post(self, spec: SubscriptionSpec, plan_code: str | None, claim: Claim) -> SubscriptionResponse:
        body = {"external_customer_id": spec.org_id, "external_id": spec.org_id, "plan_code": plan_code}
        call = Call(
            about=f"subscription {spec.org_id} on plan {plan_code}",
            method="POST",
            path=("subscriptions",),
            root="subscription",
            answer=SubscriptionResponse,
            body=SubscriptionBody.parse_obj(body),
        )
        return _ours(spec, self._http.send(call, claim))

    def _take_back(self, org_id: str, claim: Claim) -> SubscriptionResponse | None:
        """Cancel what is scheduled or has not begun; None if there is no such thing.

        Posting the current plan would not do it (lago.md 5.1).
        """
        canceled = self._http.send_unless("subscription_not_found", self._delete(org_id, {"status": "pending"}), claim)
        if canceled is not None and canceled.status != "canceled":
            raise _rejected(org_id, f"Lago answers {canceled.status} to taking the scheduled plan back; look there")
        return canceled

    def _delete(self, org_id: str, params: dict[str, str | list[str]]) -> Call[SubscriptionResponse]:
        return Call(
            about=f"subscription {org_id}",
            method="DELETE",
            path=("subscriptions", org_id),
            root="subscription",
            answer=SubscriptionResponse,
            params=params,
        )


def _ours(spec: SubscriptionSpec, answer: SubscriptionResponse) -> SubscriptionResponse:
    if answer.external_id != spec.org_id or answer.external_customer_id != spec.org_id:
        raise _rejected(spec.org_id, f"Lago answers with a subscription of another customer ({answer.lago_id})")
    if answer.lago_customer_id != spec.customer_id:
        # POST /subscriptions makes a bare customer where it finds none (lago.md 5.1).
        raise _rejected(
            spec.org_id,
            f"it is on Lago's customer {answer.lago_customer_id}, not on {spec.customer_id}, which was deleted there; "
            "decide which of them stays",
        )
    if answer.status != "active":
        raise _rejected(spec.org_id, f"it is {answer.status} in Lago, not active; settle it there, then retry")
    _state(answer)  # before anything is built on an answer that cannot be read
    return answer


def _state(answer: SubscriptionResponse) -> Subscription:
    about = f"subscription {answer.external_id}"
    if answer.plan_code is None:
        raise unreadable(about, "plan_code")
    return Subscription(
        id=answer.lago_id,
        plan_code=answer.plan_code,
        next_plan_code=answer.next_plan_code,
        next_plan_at=moment(about, answer.downgrade_plan_date) if answer.next_plan_code else None,
    )


def _took_effect(spec: SubscriptionSpec, known: Known, found: SubscriptionResponse) -> bool:
    """Whether Lago has made a scheduled change, which gives the subscription a new row.

    It may be one that was replaced here by another before we learned that it came: then too what is in effect counts,
    and going back to the first plan would charge for a period that was never asked for.
    """
    if found.lago_id == known.subscription_id:
        return False
    came_as_known = known.next_plan_code is not None and found.plan_code == known.next_plan_code
    came_as_asked = found.plan_code == spec.next_plan_code and found.previous_plan_code == spec.plan_code
    return came_as_known or came_as_asked


def _was_to_come(spec: SubscriptionSpec, known: Known) -> bool:
    """Whether the question is only if the scheduled plan came: nobody changed a plan here, and nobody retries."""
    scheduled = known.subscription_id is not None and known.next_plan_code == spec.next_plan_code
    return scheduled and known.verified and not known.ended_by_us


def _made_at_once(answer: SubscriptionResponse) -> bool:
    if answer.created_at is None or answer.started_at is None:
        return True
    about = f"subscription {answer.external_id}"
    return moment(about, answer.started_at) - moment(about, answer.created_at) < AT_ONCE


def _rejected(org_id: str, sentence: str) -> RejectedError:
    message = f"subscription {org_id}: {sentence}"
    return RejectedError("lago", message)
