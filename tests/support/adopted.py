"""An adopted organization: what a business had at both providers under ids of its own, and links that have these ids.

The links are as ``adopt apply`` leaves them, in a managed organization.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from core.compare.desired_state import contact_fingerprint, customer_fingerprint, desired_state
from core.db.models.billing_links import BillingLink, MarksState
from core.db.models.organizations import Organization
from core.events.event_types import ChangeContext
from core.organizations import commands
from core.organizations.commands import NewOrganization
from core.ports.spec import Provider
from tests.support.sync_world import PAYMENT_PROVIDER_CODE, SyncWorld

PAYER = "cus_before"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """External ids None: the organization's. ``marks``: of the Stripe link."""

    plan: str = "professional"
    external_customer_id: str | None = None
    external_subscription_id: str | None = None
    has_payer: bool = True
    marks: MarksState = "none"
    name: str = "Umbra Labs"
    email: str = "ap@umbra.test"


def adopt_at_lago(world: SyncWorld, adopted: Adopted) -> str:
    """Lago charges. The organization has one subscription there, sold a month ago."""
    org_id = _create(world, adopted)
    customer_id = adopted.external_customer_id or org_id
    subscription_id = adopted.external_subscription_id or org_id
    configuration = {
        "payment_provider": "stripe",
        "payment_provider_code": PAYMENT_PROVIDER_CODE,
        "provider_customer_id": PAYER,
    }
    customer = {
        "external_id": customer_id,
        "name": adopted.name,
        "email": adopted.email,
        "billing_configuration": configuration if adopted.has_payer else {},
    }
    (made,) = world.sandbox.preload_lago_customers([customer])
    plan_code = world.catalog.plan(adopted.plan).code("lago")
    subscription = world.sandbox.preload_lago_subscription(customer_id, plan_code, external_id=subscription_id)
    lago = {
        "customer_id": made["lago_id"],
        "subscription_id": subscription["lago_id"],
        "external_customer_id": adopted.external_customer_id,
        "external_subscription_id": adopted.external_subscription_id,
        "payer_id": PAYER if adopted.has_payer else None,
        "payer_confirmed": adopted.has_payer,
        "without_payer": not adopted.has_payer,
        "sold_price_id": str(subscription["plan_amount_cents"]),
        **_on_plan(plan_code),
    }
    _link(world, org_id, lago=lago, stripe={"customer_id": PAYER, "marks": adopted.marks})
    return org_id


def adopt_at_stripe(world: SyncWorld, adopted: Adopted, price_id: str, **fields: Any) -> str:  # noqa: ANN401 - of any type
    """Stripe charges, by the catalog. ``fields``: of its subscription. In Lago there is nothing yet."""
    org_id = _create(world, adopted)
    subscription = world.sandbox.preload_stripe_subscription(PAYER, price_id, **fields)
    stripe = {
        "customer_id": PAYER,
        "subscription_id": subscription["id"],
        "marks": adopted.marks,
        "sold_price_id": price_id,
        **_on_plan(world.catalog.plan(adopted.plan).code("stripe")),
    }
    _link(world, org_id, stripe=stripe)
    world.reconcile_until_idle(org_id)
    world.wait(10)
    world.sandbox.reset_calls()
    return org_id


def _create(world: SyncWorld, adopted: Adopted) -> str:
    world.sandbox.preload_stripe_customers([{"id": PAYER, "name": adopted.name, "email": adopted.email}])
    new = NewOrganization(name=adopted.name, plan_tier=adopted.plan, billing_email=adopted.email)
    with world.database.write() as session:
        return commands.create(ChangeContext(session, world.now), new, world.catalog).id


def _on_plan(plan_code: str) -> dict[str, Any]:
    return {"plan_state": "applied", "applied_plan": plan_code, "sold_plan": plan_code}


def _link(world: SyncWorld, org_id: str, **columns: dict[str, Any]) -> None:
    """``columns``: of each provider's link."""
    with world.database.write() as session:
        organization = session.get_one(Organization, org_id)
        links: dict[Provider, BillingLink] = {
            "stripe": session.get_one(BillingLink, (org_id, "stripe")),
            "lago": session.get_one(BillingLink, (org_id, "lago")),
        }
        adopted = {provider: link for provider, link in links.items() if provider in columns}
        for provider, link in adopted.items():
            values = {"ownership": "adopted", "customer_state": "applied", "synced_at": world.now}
            for name, value in (values | columns[provider]).items():
                setattr(link, name, value)
            link.applied_version = link.desired_version
            link.adopted_fingerprint = contact_fingerprint(organization)
        for provider, link in adopted.items():
            desired = desired_state(provider, organization, links, world.catalog, world.policy)
            link.customer_fingerprint = customer_fingerprint(desired.customer)
    world.advance_time(days=40)
    world.sandbox.reset_calls()
