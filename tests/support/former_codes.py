"""A plan that gets another code and price, and what the providers then have."""

from __future__ import annotations

from core.catalog import publishing
from core.catalog.plans import ChargingProvider, FormerCodes
from core.ports.observed import ObservedSubscription
from tests.support.sync_world import SyncWorld

SOLD: dict[ChargingProvider, str] = {"lago": "professional", "stripe": "professional_monthly_usd"}
NEW = "professional_2027"


def give_new_code(
    world: SyncWorld, tier: str = "professional", *, listed: bool = True, amount_change: int = 500
) -> None:
    """From now on the tier is sold under another code and at another price, published at both providers."""
    plan = world.catalog.plan(tier)
    former = FormerCodes(lago=[plan.lago_plan_code], stripe=[plan.stripe_lookup_key]) if listed else FormerCodes()
    code = f"{tier}_2027"
    changed = plan.model_copy(
        update={
            "amount": plan.amount + amount_change,
            "lago_plan_code": code,
            "stripe_lookup_key": code,
            "former_codes": former,
        }
    )
    world.catalog = world.catalog.model_copy(update={"plans": {**world.catalog.plans, tier: changed}})
    publishing.publish(world.catalog, world.providers.values())
    world.sandbox.reset_calls()


def sold(world: SyncWorld, tier: str = "professional") -> str:
    org_id = world.create(plan_tier=tier)
    world.reconcile_until_idle(org_id)
    return org_id


def plans_at(world: SyncWorld, org_id: str, provider: ChargingProvider) -> tuple[str | None, str | None]:
    found = subscription_at(world, org_id, provider)
    return found.plan_code, found.next_plan_code


def subscription_at(world: SyncWorld, org_id: str, provider: ChargingProvider) -> ObservedSubscription:
    customer_id = str(world.link(org_id, provider).customer_id)
    (found,) = world.providers[provider].reader.read(org_id, [customer_id]).subscriptions
    return found
