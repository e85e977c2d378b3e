"""Moves organizations to the provider that charges their plan now, on an operator's word (decision 0007).

After ``CHARGED_BY`` or a plan's ``charged_by`` changed, everybody is charged by the other provider as before, because a
setting that was lost must end nothing. A move says that it was meant. It begins at the provider that charges: that one
stops, and the reconciler then lets the new one begin (``core.compare.charging_guard``). So it may be begun again after
a crash, and one organization that has begun is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from sqlalchemy import ColumnElement, and_, func, select, update
from sqlalchemy.orm import Session, aliased

from core.catalog.plans import Catalog, CatalogPlan
from core.compare.charging_guard import DOUBLE_CHARGING
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Management, Organization
from core.events import link_history, outbox
from core.events.event_types import ChangeContext
from core.flow_control import payment_brake
from core.flow_control.payment_brake import RequestedChange
from core.organizations import link_states, management
from core.organizations.links import SWEEP_GRACE
from core.ports.spec import PROVIDER_NAMES, PROVIDERS, Provider
from core.reconcile.payment_goals import plan_goal

MoveState = Literal["can_move", "moving", "moved", "left"]
"""can_move: it is charged by the wrong provider. moving: it was begun. moved: the right one charges. left: it is not
moved, for a reason."""
BRAKE_REASON: Final = "charging move"
_AT_STRIPE, _AT_LAGO = aliased(BillingLink, name="at_stripe"), aliased(BillingLink, name="at_lago")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargingMove:
    """One organization that the wrong provider charges, as its rows say. ``reason``: why it is not moved now."""

    org_id: str
    name: str
    version: int
    tier: str
    amount: int
    currency: str
    interval: str
    charged_by: Provider
    customer_id: str | None
    subscription_id: str | None
    payer_id: str | None
    state: MoveState = "can_move"
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveRules:
    """``to``: who is to charge. ``installation``: its mode. ``emails_invoices``: Stripe does, and needs an address."""

    catalog: Catalog
    to: Provider
    installation: Management = "manage"
    emails_invoices: bool = False

    @property
    def source(self) -> Provider:
        return "lago" if self.to == "stripe" else "stripe"


def count_to_move(session: Session, catalog: Catalog, to: Provider) -> int:
    """Live organizations that are managed and that the other provider charges, also while they move."""
    is_managed = [each.observed_at.is_(None) & (each.ownership != "theirs") for each in (_AT_STRIPE, _AT_LAGO)]
    query = select(func.count(Organization.id)).where(_charged_elsewhere(catalog, to), *is_managed)
    return session.scalar(query) or 0


def counts_to_move(session: Session, catalog: Catalog) -> dict[Provider, int]:
    """``count_to_move`` by the provider that is to charge, without those of which nobody is charged elsewhere."""
    counts = {provider: count_to_move(session, catalog, provider) for provider in PROVIDERS}
    return {provider: count for provider, count in counts.items() if count}


def sentence(to: Provider, count: int) -> str:
    """For operators: who is charged by the wrong provider, and the way out."""
    source = PROVIDER_NAMES["lago" if to == "stripe" else "stripe"]
    number = "1 organization is" if count == 1 else f"{count} organizations are"
    return f"{number} charged by {source}, although the plan says {PROVIDER_NAMES[to]}; {move_command(to)} lists them"


def move_command(to: Provider) -> str:
    return f"`billing-sync charging move --to {to} --out FILE`"


def list_moves(session: Session, rules: MoveRules) -> list[ChargingMove]:
    """Those of ``count_to_move`` and the observed ones, by ascending id, each with what stands in its way."""
    query = select(Organization, _AT_STRIPE, _AT_LAGO).where(_charged_elsewhere(rules.catalog, rules.to))
    found = session.execute(query.order_by(Organization.id))
    return [
        move_of(organization, {"stripe": at_stripe, "lago": at_lago}, rules)
        for organization, at_stripe, at_lago in found
    ]


def move_of(organization: Organization, its_links: Mapping[Provider, BillingLink], rules: MoveRules) -> ChargingMove:
    """The organization as it is now. Its plan is in the catalog."""
    plan, source = rules.catalog.plans[organization.plan_tier], rules.source
    state, reason = _state_of(organization, its_links, rules)
    return ChargingMove(
        org_id=organization.id,
        name=organization.name,
        version=organization.version,
        tier=plan.tier,
        amount=plan.amount,
        currency=plan.currency,
        interval=plan.interval,
        charged_by=source,
        customer_id=its_links[source].customer_id,
        subscription_id=its_links[source].subscription_id,
        payer_id=its_links["lago"].payer_id if source == "lago" else None,
        state=state,
        reason=reason,
    )


def begin(
    change: ChangeContext, organization: Organization, catalog: Catalog, to: Provider, *, is_expected: bool
) -> None:
    """Let the provider that charges stop. The caller has locked the organization and seen that it ``can_move``.

    ``is_expected``: the move takes a place of its own at the payment brake, and none of the hour.
    """
    source: Provider = "lago" if to == "stripe" else "stripe"
    session, org_id = change.session, organization.id
    # Only this link: the other one would be parked until this one has stopped.
    session.execute(
        update(BillingLink)
        .where(BillingLink.org_id == org_id, BillingLink.provider == source)
        .values(
            **link_states.values_after("charging_moved"),
            charging_move="asked",
            charging_move_at=change.now,
            # An attempt that has begun without this word must not end as if it had heard it.
            generation=BillingLink.generation + 1,
            applied_version=BillingLink.desired_version - 1,
            attempts=0,
            next_sweep_at=change.now + SWEEP_GRACE,
        )
        .execution_options(synchronize_session=False)
    )
    if is_expected:
        found = session.scalars(select(BillingLink).where(BillingLink.org_id == org_id))
        requested = RequestedChange(org_id=org_id, scope="plan", goal=plan_goal(organization, found, catalog))
        payment_brake.record(session, requested, "expected", change.now, BRAKE_REASON)
    link_history.record_actions(change, org_id, [source], "charging_moved", to=to)
    outbox.record(change, "organization.sync_requested", org_id, {})


def _state_of(
    organization: Organization, its_links: Mapping[Provider, BillingLink], rules: MoveRules
) -> tuple[MoveState, str | None]:
    plan, to = rules.catalog.plans[organization.plan_tier], rules.to
    at_stripe, at_lago = its_links["stripe"], its_links["lago"]
    if organization.status == "deleted":
        return "left", "the organization is deleted"
    if plan.charged_by != to:
        return (
            "left",
            f"its plan {plan.tier} is charged by {plan.charged_by} now: write the list again",
        )
    is_charged = at_lago.payer_id is not None if to == "stripe" else at_stripe.subscription_id is not None
    if not is_charged:
        return "moved", None
    if management.is_observed(organization, its_links.values(), rules.installation):
        return "left", "it is observed: run `billing-sync adopt ORG`, or `billing-sync management manage ORG`"
    source = its_links[rules.source]
    if source.charging_move is not None:
        # Whatever stands in the way of one that has begun is said where its link is.
        reason = f"it stands still at {source.provider}: run `billing-sync status {organization.id}`"
        return ("moving", None) if source.state == "active" else ("left", reason)
    lost_money = _lost_money(organization, its_links, rules)
    return ("left", lost_money) if lost_money is not None else _obstacle(organization, its_links, source)


def _lost_money(organization: Organization, its_links: Mapping[Provider, BillingLink], rules: MoveRules) -> str | None:
    """Why somebody would pay another price, pay twice, or pay nothing; None: nobody would."""
    plan = rules.catalog.plans[organization.plan_tier]
    if not plan.amount:
        return None
    if rules.to == "lago":
        return _other_price(its_links, plan, rules)
    if rules.emails_invoices and organization.billing_email is None:
        command = f"`billing-sync set {organization.id} --billing-email ADDRESS`"
        return f"Stripe mails its invoices, and it has no billing email: run {command}"
    if not plan.has_unpaid_plan and rules.catalog.ending.lago_credit_note == "credit":
        return (
            "Lago would use its credit up for an invoice that nobody pays: give the plan a lago_usage_plan_code in "
            'plans.toml and run `billing-sync plans push`, or set lago_credit_note = "refund" there'
        )
    return _other_price(its_links, plan, rules)


def _other_price(its_links: Mapping[Provider, BillingLink], plan: CatalogPlan, rules: MoveRules) -> str | None:
    """Why it may pay another price than today's now, or would at the new provider."""
    source, new = its_links[rules.source], its_links[rules.to]
    # Where Lago charges, nobody stays on a usage plan, so what was sold before it decides until Lago has switched.
    codes = [code for code in (new.target_plan, new.sold_plan) if code is not None and not plan.is_usage_code(code)]
    stays_on = next(iter(codes), None)
    if rules.to == "lago" and stays_on not in {None, plan.lago_plan_code}:
        return (
            f"it has {stays_on} in Lago, and would pay its price: give the plan a lago_usage_plan_code, run "
            "`billing-sync plans use-usage-plans` while Stripe charges, and move it once Lago has switched"
        )
    todays_code = plan.lago_plan_code if rules.source == "lago" else plan.stripe_lookup_key
    if source.sold_plan not in {None, todays_code}:
        return (
            f"it was sold {source.sold_plan}, and would pay today's price: set charged_by back and use `billing-sync "
            "plans move` first"
        )
    if source.ownership == "adopted" and rules.source == "stripe":
        command = f"`billing-sync retry {source.org_id}`"
        return f"it was adopted, and its price may be its own: {command} moves it to today's price"
    if source.ownership == "adopted" and source.sold_price_id != str(plan.amount):
        command = f"`billing-sync adopt {source.org_id} --to-catalog`"
        return f"it was adopted at a price of its own: run {command} first"
    return None


def _obstacle(
    organization: Organization, its_links: Mapping[Provider, BillingLink], source: BillingLink
) -> tuple[MoveState, str | None]:
    """Whether nothing but the setting is in the way. What is parked for the setting itself can move."""
    org_id = organization.id
    for link in its_links.values():
        if link.state == "on_hold" or (link.state == "parked" and link.error_code not in _PARKED_BY_SETTING):
            state = "on hold" if link.state == "on_hold" else "parked"
            return "left", f"it is {state} at {link.provider} ({link.error_code}): run `billing-sync status {org_id}`"
    if source.without_payer:
        return "left", "it was adopted without a payer"
    if source.arrangement is not None:
        return "left", f"somebody arranged its subscription in {source.provider}: run `billing-sync status {org_id}`"
    if organization.pending_plan_tier is not None:
        return "left", f"its plan changes to {organization.pending_plan_tier}: wait for that, or take it back"
    return "can_move", None


# What an attempt that a setting stops is parked with, at either provider.
_PARKED_BY_SETTING: Final = frozenset({DOUBLE_CHARGING})


def _charged_elsewhere(catalog: Catalog, to: Provider) -> ColumnElement[bool]:
    tiers = [plan.tier for plan in catalog.plans.values() if plan.charged_by == to]
    charges = _AT_LAGO.payer_id.is_not(None) if to == "stripe" else _AT_STRIPE.subscription_id.is_not(None)
    return and_(
        *(at.org_id == Organization.id for at in (_AT_STRIPE, _AT_LAGO)),
        _AT_STRIPE.provider == "stripe",
        _AT_LAGO.provider == "lago",
        Organization.status != "deleted",
        Organization.plan_tier.in_(tiers),
        charges,
    )
