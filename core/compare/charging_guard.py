"""The guard that one provider charges an organization at a time, and who gives way first (decision 0007).

Which one it is, the catalog decides (``core.catalog.plans``).

| the plan is charged by | at Stripe | at Lago |
|---|---|---|
| Lago | a customer, who is the payer | a subscription, and the payer |
| Stripe | a customer and a subscription | a subscription without a payer |

So Stripe charges while it has a subscription of ours, or creates one. Lago charges while its customer has a payer. A
provider may start when the row of the other link says that the other one has stopped (``refuse_double_charging``). That
row is read when the desired state is computed, and again under the organization's lock before a write after which the
provider may charge. Stripe does not begin either before Lago was read where Lago may have an older customer
(``is_unread``). When one has stopped, the other link is marked for sync (``lago_gave_way``, ``lago_must_know``).
"""

from __future__ import annotations

from typing import Final

from core.catalog.plans import CatalogPlan
from core.compare.advice import Advice
from core.db.models.billing_links import BillingLink, CustomerState, PlanState
from core.ports.errors import RejectedError
from core.ports.spec import OTHER_TERMS, Provider

DOUBLE_CHARGING: Final = "double_charging"


def refuse_double_charging(other_link: BillingLink) -> None:
    """Call before this provider charges. Raises ``RejectedError`` if the other one charges or is about to."""
    if other_link.provider == "lago" and other_link.payer_id is not None:
        advice = Advice("lago_still_has_payer", {"payer_id": other_link.payer_id, "org_id": other_link.org_id})
        raise RejectedError("stripe", advice.sentence, DOUBLE_CHARGING)
    is_creating = other_link.intent is not None and other_link.intent["operation"] == "create_subscription"
    is_on_other_terms = other_link.error_code == OTHER_TERMS
    if other_link.provider == "stripe" and (other_link.subscription_id is not None or is_creating or is_on_other_terms):
        phrase = subscription_phrase(other_link.subscription_id)
        parameters = {
            "subscription": "a subscription that billing-sync did not create" if is_on_other_terms else phrase,
            "org_id": other_link.org_id,
        }
        raise RejectedError("lago", Advice("stripe_still_has_subscription", parameters).sentence, DOUBLE_CHARGING)


def is_unread(lago_link: BillingLink) -> bool:
    """Whether Lago may have a customer under the organization's id that pays already, because nobody has read it.

    The id came from outside (``maybe_older``). A read that finds a customer stores its id, and one that finds none ends
    with our create.
    """
    return lago_link.maybe_older and lago_link.customer_id is None


def subscription_phrase(subscription_id: str | None) -> str:
    """``None``: its create request was sent, and the response is not known yet."""
    return f"the subscription {subscription_id}" if subscription_id else "a subscription that is being created"


def charging_provider_would_change(
    provider: Provider, org_id: str, plan: CatalogPlan, next_plan: CatalogPlan
) -> RejectedError:
    """For a scheduled plan: neither provider can schedule what starts at the other."""
    parameters = {
        "org_id": org_id,
        "tier": plan.tier,
        "next_tier": next_plan.tier,
        "charged_by": plan.charged_by,
        "next_charged_by": next_plan.charged_by,
    }
    advice = Advice("charging_provider_would_change", parameters)
    return RejectedError(provider, advice.sentence, "charging_provider_would_change")


def payer_id(stripe_link: BillingLink) -> str | None:
    """Whom Lago is to charge: the Stripe customer, once Stripe has confirmed it.

    One that is not ours counts, too: nothing is written while it is not adopted, and what is planned names it.
    """
    is_known = stripe_link.customer_state in {"unknown", "applied"} or stripe_link.ownership == "theirs"
    return stripe_link.customer_id if is_known else None


def may_end_at_stripe(
    plan_code: str | None, uncharged_plan_code: str | None, plan: PlanState, customer: CustomerState
) -> bool:
    """Whether the Stripe subscription of a plan that Lago charges may be ended.

    The plan itself changed, an operator asked for a retry, or we had set out to end it before. If only a setting
    changed, it may have been lost, and a lost setting must end nothing (money.md 23). ``uncharged_plan_code``: the code
    of the plan if Stripe charged for it.
    """
    plan_changed = plan_code not in {None, uncharged_plan_code}
    return plan_changed or plan == "ending" or customer in {"absent", "unconfirmed"}


def setting_would_end(
    provider: Provider, org_id: str, subscription_id: str | None, *, credits_unused_time: bool
) -> RejectedError:
    """For a subscription at Stripe that only a changed setting would end."""
    credited = "" if credits_unused_time else " and credits no paid time that is left (stripe_prorate)"
    retry_command = f"billing-sync retry {org_id}"
    return RejectedError(
        provider,
        "Lago is now the charging provider of this plan by a setting (charged_by in plans.toml, or CHARGED_BY), but "
        f"Stripe still has {subscription_phrase(subscription_id)} and goes on charging: to keep Stripe, set it back, "
        f"restart the workers and run `{retry_command}`; to move to Lago, run `billing-sync charging move --to lago "
        f"--out FILE`, or `{retry_command}` for this one, which ends the Stripe subscription{credited}",
        DOUBLE_CHARGING,
    )


def lago_gave_way(payer_before: str | None, payer_now: str | None) -> bool:
    """Whether the payer was removed, so that Stripe may charge now."""
    return payer_before is not None and payer_now is None


def lago_must_know(lago_link: BillingLink, payer: str | None, *, ended_at_stripe: bool) -> bool:
    """Whether Lago must get another payer, or may charge now because the Stripe subscription has ended."""
    has_new_payer = payer is not None and payer != lago_link.payer_id
    return has_new_payer or ended_at_stripe
