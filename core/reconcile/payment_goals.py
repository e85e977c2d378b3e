"""What is to be paid for an organization, as a digest, and the error of a change that the payment brake holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Final

from core.catalog.plans import Catalog, CatalogPlan
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.ports.errors import PaymentBrakeError
from core.ports.planned import PaymentChange, PaymentChangeKind
from core.ports.spec import PROVIDER_NAMES, Provider

ON_HOLD_CODES: Final[Mapping[PaymentChangeKind, str]] = {
    "end": "end_on_hold",
    "plan": "plan_change_on_hold",
    "payer": "payer_change_on_hold",
}
DROPPED_CODE: Final = "payment_change_dropped"


def plan_goal(organization: Organization, links: Iterable[BillingLink], catalog: Catalog) -> str:
    """Of its plan, at both ``links``: so a change of who charges takes one place.

    A code to which an operator moves one of them is part of it, if somebody pays there.
    """
    tiers = (organization.plan_tier, organization.pending_plan_tier)
    is_deleted = organization.status == "deleted"
    plan = catalog.plans.get(organization.plan_tier)
    charged_by = plan.charged_by if plan is not None else None
    targets = [[link.provider, link.target_plan] for link in links if link.target_plan and link.provider == charged_by]
    plans: list[object] = [[tier, *_charge(catalog.plans.get(tier or ""))] for tier in tiers]
    return _digest("ended" if is_deleted else [*plans, *targets])


def _charge(plan: CatalogPlan | None) -> tuple[str | int, ...]:
    if plan is None:
        return ()
    return (plan.charged_by, plan.stripe_lookup_key, plan.lago_plan_code, plan.amount, plan.currency, plan.interval)


def payer_goal(payer_id: str | None) -> str:
    return _digest(["payer", payer_id])


def on_hold_error(provider: Provider, org_id: str, payment: PaymentChange) -> PaymentBrakeError:
    message = (
        f"{_phrase(provider, payment)} is on hold before anything was sent, because too many changes of what is paid "
        f"came within an hour: `billing-sync brake list` shows all, `billing-sync brake release --only {org_id} "
        "--reason …` sends it"
    )
    return PaymentBrakeError(provider, message, ON_HOLD_CODES[payment.kind])


def _phrase(provider: Provider, payment: PaymentChange) -> str:
    name = PROVIDER_NAMES[provider]
    change = f" from {payment.before} to {payment.after}" if payment.before and payment.after else ""
    match payment.kind:
        case "end":
            return f"the end of the subscription in {name}"
        case "payer":
            return f"the change of the payer in {name}{change}"
        case "plan":
            when = " at the end of the period" if payment.at_period_end else ""
            return f"the change of the plan in {name}{change}{when}"


def _digest(goal: object) -> str:
    return hashlib.sha256(json.dumps(goal).encode()).hexdigest()
