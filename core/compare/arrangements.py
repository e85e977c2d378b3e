"""A plan change of a subscription for which somebody arranged something at the provider: an operator decides first.

To sell a plan on a subscription that ends, or that is paused, is a guess about money. So nothing is sent, and the
sentence names both ways out: take the arrangement off at the provider, or leave the plan as it is there. An open
first payment cannot be taken off, so it is awaited.
"""

from __future__ import annotations

from core.compare.advice import Advice, AdviceCode
from core.ports.arrangement import Arrangement
from core.ports.errors import ConflictError
from core.ports.spec import ARRANGED_AT_PROVIDER, PROVIDER_NAMES, Provider, SubscriptionSpec


def plan_change_conflict(
    provider: Provider, spec: SubscriptionSpec, subscription_id: str, arrangement: Arrangement
) -> ConflictError:
    changes_later = spec.next_plan_code not in {None, spec.plan_code}
    parameters = {
        "org_id": spec.org_id,
        "provider_name": PROVIDER_NAMES[provider],
        "subscription_id": subscription_id,
        "arrangement": arrangement.phrase,
        "plan": f"{spec.plan_code}, then {spec.next_plan_code}" if changes_later else spec.plan_code,
    }
    code: AdviceCode = "conflict_first_payment" if arrangement.waits_for_payment else "conflict_arrangement"
    return ConflictError(provider, Advice(code, parameters).sentence, ARRANGED_AT_PROVIDER, arrangement=arrangement)


def provider_change_conflict(org_id: str, subscription_id: str, arrangement: Arrangement) -> ConflictError:
    """Lago charges for the plan from now on, but the subscription in Stripe is arranged."""
    parameters = {"org_id": org_id, "subscription_id": subscription_id, "arrangement": arrangement.phrase}
    sentence = Advice("conflict_arranged_provider_change", parameters).sentence
    return ConflictError("stripe", sentence, ARRANGED_AT_PROVIDER, arrangement=arrangement)
