"""What may be wrong with the subscriptions of one organization at one provider."""

from __future__ import annotations

from collections.abc import Iterable

from core.compare.advice import Advice, AdviceCode
from core.compare.charging_guard import DOUBLE_CHARGING
from core.compare.desired_state import DesiredState, sold_price
from core.compare.provider_side import ProviderSide, RuleFinding
from core.ports.errors import RejectedError
from core.ports.observed import ObservedSubscription


def subscription_findings(side: ProviderSide) -> Iterable[RuleFinding]:
    desired = side.desired
    if isinstance(desired, RejectedError):
        # Without a desired state, subscriptions of others are reported all the same.
        return [*_no_desired_state(side, desired), *_foreign_subscriptions(side)]
    if desired.plan_code is None:
        return [_undesired_subscription(side, each, desired) for each in side.observed.subscriptions]
    return [*_foreign_subscriptions(side), *_our_subscription(side, desired)]


def _no_desired_state(side: ProviderSide, error: RejectedError) -> Iterable[RuleFinding]:
    if side.is_active:
        yield RuleFinding(
            kind="double_charging" if error.code == DOUBLE_CHARGING else "wrong_plan",
            field="plan",
            ours=side.organization.plan_tier,
            theirs=None,
            advice=side.advice("no_desired_state", reason=error.message),
        )


def _undesired_subscription(
    side: ProviderSide, subscription: ObservedSubscription, desired: DesiredState
) -> RuleFinding:
    if not desired.active:
        return RuleFinding(
            kind="foreign_subscription",
            field="subscription",
            ours=None,
            theirs=subscription.plan_code,
            advice=side.advice("organization_deleted"),
            observed=subscription,
        )
    return RuleFinding(
        kind="double_charging",
        field="subscription",
        ours=None,
        theirs=subscription.plan_code or subscription.id,
        advice=side.advice("charged_by_lago"),
        observed=subscription,
    )


def _foreign_subscriptions(side: ProviderSide) -> Iterable[RuleFinding]:
    our_id = None if side.subscription is None else side.subscription.id
    for each in side.observed.subscriptions:
        if each.id != our_id:
            yield RuleFinding(
                kind="foreign_subscription",
                field="subscription",
                ours=None,
                theirs=each.plan_code,
                advice=side.advice("foreign_subscription", subscription_id=each.id, customer_id=each.customer_id),
                observed=each,
            )


def _our_subscription(side: ProviderSide, desired: DesiredState) -> Iterable[RuleFinding]:
    if not side.is_active or side.usable_customer is None:
        return []
    if side.subscription is None:
        return [_ended_subscription(side, desired)]
    return [*_plan_findings(side, side.subscription, desired), *_arrangement(side, side.subscription)]


def _arrangement(side: ProviderSide, subscription: ObservedSubscription) -> Iterable[RuleFinding]:
    if subscription.arrangement is not None:
        yield RuleFinding(
            kind="arrangement",
            field="arrangement",
            ours=None,
            theirs=subscription.arrangement.phrase,
            advice=side.advice("arrangement"),
            observed=subscription,
        )


def _ended_subscription(side: ProviderSide, desired: DesiredState) -> RuleFinding:
    code = _how_it_ended(side)
    return RuleFinding(
        kind="missing",
        field="subscription",
        ours=desired.plan_code,
        theirs=None,
        advice=side.advice(code),
        object_id=side.link.subscription_id,
        repairable=code == "ended_in_lago",
    )


def _how_it_ended(side: ProviderSide) -> AdviceCode:
    if side.provider == "stripe":
        return "ended_in_stripe"
    has_our_id = any(each.org_id == side.organization.id for each in side.observed.subscriptions)
    return "inactive_in_lago" if has_our_id else "ended_in_lago"


def _plan_findings(
    side: ProviderSide, subscription: ObservedSubscription, desired: DesiredState
) -> Iterable[RuleFinding]:
    next_plan = None if desired.next_plan_code == desired.plan_code else desired.next_plan_code
    # The price that was sold is the plan that was sold, whatever its lookup key says by now.
    sold = sold_price(side.link)
    is_as_sold = sold is not None and subscription.price_id == sold.price_id
    has_plan = desired.is_plan(sold.plan_code if sold is not None and is_as_sold else subscription.plan_code)
    has_next_plan = (
        subscription.next_plan_code is None if next_plan is None else desired.is_next_plan(subscription.next_plan_code)
    )
    if (has_plan and has_next_plan) or _is_expected_plan_change(side, subscription, desired):
        return
    if not has_plan:
        yield _wrong_plan(side, subscription, desired)
    else:
        yield _wrong_next_plan(side, subscription, next_plan)


def _wrong_plan(side: ProviderSide, subscription: ObservedSubscription, desired: DesiredState) -> RuleFinding:
    repairable = (
        subscription.arrangement is None
        and subscription.next_plan_code is None
        and _is_not_more_expensive(side, subscription, desired)
    )
    return RuleFinding(
        kind="wrong_plan",
        field="plan",
        ours=desired.plan_code,
        theirs=subscription.plan_code,
        advice=_plan_advice(side, subscription, "plan_differs" if repairable else "plan_not_repairable"),
        observed=subscription,
        repairable=repairable,
    )


def _wrong_next_plan(side: ProviderSide, subscription: ObservedSubscription, next_plan: str | None) -> RuleFinding:
    """A scheduled plan that is in no plan of the catalog may be ours at the price that was sold, under another code."""
    code = subscription.next_plan_code
    is_known = code is None or side.catalog.tier_of(side.provider, code) is not None
    advice: AdviceCode = "next_plan_missing" if next_plan else "next_plan_undesired"
    return RuleFinding(
        kind="wrong_plan",
        field="next_plan",
        ours=next_plan,
        theirs=code,
        advice=_plan_advice(side, subscription, advice if is_known else "plan_not_repairable"),
        observed=subscription,
        repairable=subscription.arrangement is None and is_known,
    )


def _plan_advice(side: ProviderSide, subscription: ObservedSubscription, code: AdviceCode) -> Advice:
    """An attempt does not change the plan of an arranged subscription, and the repair is an attempt."""
    if subscription.arrangement is None:
        return side.advice(code)
    return side.advice("plan_of_arranged_subscription", arrangement=subscription.arrangement.phrase)


def _is_expected_plan_change(side: ProviderSide, subscription: ObservedSubscription, desired: DesiredState) -> bool:
    """A scheduled plan that took effect before we checked, or will take effect on this provider's own date."""
    observed_plans = (subscription.plan_code, subscription.next_plan_code)
    last_known_plans = (side.link.applied_plan, side.link.applied_next_plan)
    took_effect = (
        desired.next_plan_code is not None
        and desired.is_next_plan(subscription.plan_code)
        and subscription.next_plan_code is None
    )
    is_scheduled = (
        not desired.is_charging and last_known_plans[1] == desired.plan_code and observed_plans == last_known_plans
    )
    return took_effect or is_scheduled


def _is_not_more_expensive(side: ProviderSide, subscription: ObservedSubscription, desired: DesiredState) -> bool:
    """Whether their plan costs at most what ours does.

    A plan that the catalog does not have may cost anything, and so may one under a former code.
    """
    plans = side.catalog.plans.values()
    yearly = {plan.code(side.provider): plan.yearly_amount for plan in plans}
    if side.provider == "lago":
        yearly |= {plan.lago_plan_code: plan.yearly_amount for plan in plans}
        yearly |= {plan.lago_usage_plan_code: 0 for plan in plans if plan.lago_usage_plan_code is not None}
    theirs, ours = yearly.get(subscription.plan_code or ""), yearly.get(desired.plan_code or "")
    return theirs is not None and ours is not None and theirs <= ours
