"""One organization, ours against theirs: a pure comparison. What must hold is what
``core.compare.desired_state`` says.

A link that waits for a person has its say already; of it only what may cost money is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import NamedTuple

from core.catalog.plans import Catalog
from core.compare.desired_state import DOUBLE_CHARGING, DesiredState, PayerPolicy, desired_state
from core.compare.findings import Finding, FindingKind, TheirWrite
from core.compare.local_state import LocalState
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.ports.errors import RejectedError
from core.ports.observed import ObservedCustomer, ObservedState, ObservedSubscription, Repair
from core.ports.spec import Provider, SubscriptionSpec

PROVIDER_NAMES: dict[Provider, str] = {"stripe": "Stripe", "lago": "Lago"}
MAX_CUSTOMERS_INSPECTED = 10
REMOTE_WRITE_CLOCK_SKEW = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffRules:
    """``accounts``: whose our keys are, where it was asked."""

    catalog: Catalog
    policy: PayerPolicy
    accounts: Mapping[Provider, str] = field(default_factory=dict)


class DiffResult(NamedTuple):
    findings: list[Finding]
    repairs: dict[Provider, Repair]


def compare(local: LocalState, observed_states: Mapping[Provider, ObservedState], rules: DiffRules) -> DiffResult:
    """``observed_states`` may lack a biller: then nothing is said of it."""
    findings: list[Finding] = []
    repairs: dict[Provider, Repair] = {}
    for provider, observed in sorted(observed_states.items()):
        side = _ProviderSide(local, provider, relevant_to(local, provider, observed), rules)
        if (wrong_account := _wrong_account(side)) is not None:
            findings.append(wrong_account)
            continue
        provider_findings = [*_customer_findings(side), *_subscription_findings(side)]
        findings += provider_findings
        if (repair := _repair_for(side, provider_findings)) is not None:
            repairs[provider] = repair
    return DiffResult(findings, repairs)


def relevant_to(local: LocalState, provider: Provider, observed: ObservedState) -> ObservedState:
    """What of a sight concerns the organization: its known customer, those marked as its own, what is on them."""
    org_id, linked_id = local.organization.id, local.links[provider].customer_id
    customers = {each.id: each for each in observed.customers if each.id == linked_id or each.org_id == org_id}
    customer_ids = {*customers, *({linked_id} if linked_id else ())}
    subscriptions = {
        each.id: each for each in observed.subscriptions if each.org_id == org_id or each.customer_id in customer_ids
    }
    return ObservedState(
        customers=tuple(sorted(customers.values(), key=lambda each: each.id)),
        subscriptions=tuple(sorted(subscriptions.values(), key=lambda each: each.id)),
    )


def customers_to_inspect(local: LocalState, provider: Provider, observed: ObservedState) -> tuple[str, ...]:
    """The customers that must be looked at for the organization, the known one first."""
    linked_id = local.links[provider].customer_id
    observed_ids = {each.id for each in observed.customers} | {each.customer_id for each in observed.subscriptions}
    others = sorted(observed_ids - {linked_id, ""} - {None})
    return tuple([*([linked_id] if linked_id else []), *others][:MAX_CUSTOMERS_INSPECTED])


class _ProviderSide:
    """One biller's half of the comparison."""

    def __init__(self, local: LocalState, provider: Provider, observed: ObservedState, rules: DiffRules) -> None:
        self.local, self.provider, self.observed, self.rules = local, provider, observed, rules

    @property
    def organization(self) -> Organization:
        return self.local.organization

    @property
    def link(self) -> BillingLink:
        return self.local.links[self.provider]

    @property
    def provider_name(self) -> str:
        return PROVIDER_NAMES[self.provider]

    @property
    def is_active(self) -> bool:
        return self.link.state == "active"

    @cached_property
    def desired(self) -> DesiredState | RejectedError:
        try:
            return desired_state(
                self.provider,
                self.organization,
                self.local.other_link(self.provider),
                self.rules.catalog,
                self.rules.policy,
            )
        except RejectedError as error:
            return error

    @cached_property
    def customer(self) -> ObservedCustomer | None:
        """The one that we know."""
        return next((each for each in self.observed.customers if each.id == self.link.customer_id), None)

    @cached_property
    def subscription(self) -> ObservedSubscription | None:
        """The one that we made: at Lago it has our id, at Stripe we know its id or it bears our mark."""
        for each in self.observed.subscriptions:
            marked = each.org_id == self.organization.id and each.customer_id == self.link.customer_id
            if self.provider == "lago":
                if marked and each.started:
                    return each
            elif each.id == self.link.subscription_id or (marked and self.link.subscription_id is None):
                return each
        return None

    def make_finding(  # noqa: PLR0913 - a finding has so many fields
        self,
        kind: FindingKind,
        field: str,
        ours: str | None,
        theirs: str | None,
        advice: str,
        *,
        observed: ObservedCustomer | ObservedSubscription | None = None,
        object_id: str | None = None,
        repairable: bool = False,
    ) -> Finding:
        return Finding(
            kind=kind,
            provider=self.provider,
            object_id=observed.id if observed is not None else object_id,
            field=field,
            ours=ours,
            theirs=theirs,
            repairable=repairable,
            advice=advice,
            their_write=self._last_writer(observed)
            if observed is not None and observed.changed_at is not None
            else None,
        )

    def _last_writer(self, observed: ObservedCustomer | ObservedSubscription) -> TheirWrite:
        """What the object's own times tell: written after our last round there, it was not by us."""
        synced_at, changed_at = self.link.synced_at, observed.changed_at
        after_our_write = (
            synced_at is not None and changed_at is not None and changed_at > synced_at + REMOTE_WRITE_CLOCK_SKEW
        )
        return TheirWrite(by="not us" if after_our_write else "unknown", at=changed_at)


def _wrong_account(side: _ProviderSide) -> Finding | None:
    """Its ids are of another account than our key, where they mean nothing."""
    key_account, link_account = side.rules.accounts.get(side.provider), side.link.account_id
    if not side.is_active or None in {key_account, link_account} or key_account == link_account:
        return None
    advice = (
        f"its ids are of the account {link_account}, our key is of {key_account}: bring the ids that it has there with "
        f"update_org_billing_ids({side.organization.id!r}, {side.provider}_id=…)"
    )
    return side.make_finding(
        "wrong_account", "account_id", link_account, key_account, advice, object_id=side.link.customer_id
    )


def _customer_findings(side: _ProviderSide) -> Iterable[Finding]:
    linked_id = side.link.customer_id
    others = [each for each in side.observed.customers if each.id != linked_id and not each.deleted]
    if linked_id is None:
        if len(others) == 1 and _is_adopted_by_next_reconcile(side):
            return
        kind: FindingKind = "unknown_customer" if len(others) == 1 else "duplicate"
        for each in others:
            advice = f"bring the right one with update_org_billing_ids({side.organization.id!r}, {side.provider}_id=…)"
            yield side.make_finding(kind, "customer_id", None, each.id, advice, observed=each)
        return
    if side.is_active and (side.customer is None or side.customer.deleted):
        yield _missing_customer(side, linked_id, others)
    else:
        for each in others:
            advice = (
                f"{linked_id} is the one that we use: keep it, move what {each.id} owes, and clear metadata.org_id of "
                f"{each.id} in Stripe; never delete the one with invoices"
            )
            yield side.make_finding("duplicate", "metadata.org_id", linked_id, each.id, advice, observed=each)
    if side.is_active and side.customer is not None and not side.customer.deleted:
        yield from _customer_field_findings(side, side.customer)


def _is_adopted_by_next_reconcile(side: _ProviderSide) -> bool:
    """Made by us, the answer lost, then parked or deleted: the next round that makes anything there knows it.

    At Lago by our own id, at Stripe by the create that is written down. What an import holds back waits for a person.
    """
    if side.provider == "lago":
        return side.link.state != "on_hold"
    is_creating_customer = side.link.intent is not None and side.link.intent["operation"] == "create_customer"
    return side.link.state == "parked" and is_creating_customer


def _missing_customer(side: _ProviderSide, linked_id: str, others: list[ObservedCustomer]) -> Finding:
    """Only Stripe says that one was deleted; at Lago, another one under our id proves it."""
    set_id_advice = f"bring the right id with update_org_billing_ids({side.organization.id!r}, {side.provider}_id=…)"
    theirs = ", ".join(each.id for each in others) or None
    kind: FindingKind = "missing"
    if side.customer is not None:
        kind, advice = "deleted", f"deleted in {side.provider_name}, which is final: {set_id_advice}"
    elif others and side.provider == "lago":
        kind, advice = "deleted", f"deleted in Lago and made anew there: {set_id_advice}"
    elif others:
        advice = (
            f"{side.provider_name} does not know ours, but another one bears our mark: if that is the right one, "
            f"{set_id_advice}"
        )
    else:
        advice = (
            f"{side.provider_name} knows no such customer: deleted there, or a key of another account; check "
            "the key, or make "
            f"one there marked as {side.organization.id} and {set_id_advice}"
        )
    return side.make_finding(kind, "customer_id", linked_id, theirs, advice, object_id=linked_id)


def _customer_field_findings(side: _ProviderSide, customer: ObservedCustomer) -> Iterable[Finding]:
    desired = side.desired
    if isinstance(desired, RejectedError) or not desired.active:
        return
    spec = desired.customer
    if customer.org_id != side.organization.id:
        yield _back_link_finding(side, customer)
        if customer.org_id is not None:
            return
    pairs: list[tuple[FindingKind, str, str | None, str | None]] = [
        ("renamed", "name", spec.name, customer.name),
        ("email", "email", spec.email, customer.email),
    ]
    for kind, name, ours, theirs in pairs:
        if ours is not None and ours != theirs:
            advice = f"apply writes our {name} there"
            yield side.make_finding(kind, name, ours, theirs, advice, observed=customer, repairable=True)
    if side.provider == "lago":
        yield from _lago_customer_findings(side, customer, desired)


def _back_link_finding(side: _ProviderSide, customer: ObservedCustomer) -> Finding:
    if customer.org_id is None:
        return side.make_finding(
            "back_link",
            "metadata.org_id",
            side.organization.id,
            None,
            "apply marks the customer as ours again",
            observed=customer,
            repairable=True,
        )
    advice = (
        f"two organizations claim {customer.id}: correct metadata.org_id in {side.provider_name}, or bring "
        "this organization's own "
        f"customer with update_org_billing_ids({side.organization.id!r}, {side.provider}_id=…)"
    )
    return side.make_finding(
        "back_link", "metadata.org_id", side.organization.id, customer.org_id, advice, observed=customer
    )


def _lago_customer_findings(
    side: _ProviderSide, customer: ObservedCustomer, desired: DesiredState
) -> Iterable[Finding]:
    spec = desired.customer
    if spec.currency is not None and customer.currency != spec.currency:
        repairable = customer.currency is None
        advice = (
            "apply writes our currency there"
            if repairable
            else "Lago does not change the currency of a customer that was charged: correct ours, or settle it there"
        )
        yield side.make_finding(
            "currency", "currency", spec.currency, customer.currency, advice, observed=customer, repairable=repairable
        )
    if spec.charged_by_other_provider and customer.payer_id is not None:
        advice = "Stripe charges for this plan: unlink the payment provider of the customer in Lago"
        yield side.make_finding(
            "double_charging", "provider_customer_id", None, customer.payer_id, advice, observed=customer
        )
    elif spec.payer_id is not None and customer.payer_id != spec.payer_id:
        repairable = customer.payer_id is None
        advice = (
            "apply tells Lago the Stripe customer that it charges"
            if repairable
            else "Lago charges somebody else, and another payer would lose the payment methods: decide which one it is"
        )
        yield side.make_finding(
            "broken_link",
            "provider_customer_id",
            spec.payer_id,
            customer.payer_id,
            advice,
            observed=customer,
            repairable=repairable,
        )


def _subscription_findings(side: _ProviderSide) -> Iterable[Finding]:
    desired = side.desired
    if isinstance(desired, RejectedError):
        if side.is_active:
            kind: FindingKind = "double_charging" if desired.code == DOUBLE_CHARGING else "wrong_plan"
            yield side.make_finding(kind, "plan", side.organization.plan_tier, None, desired.message)
        # What we cannot wish for now says nothing of what others sell it.
        yield from _foreign_subscriptions(side)
        return
    if desired.plan_code is None:
        for each in side.observed.subscriptions:
            yield _undesired_subscription(side, each, desired)
        return
    yield from _foreign_subscriptions(side)
    our_subscription = side.subscription
    if side.is_active and side.customer is not None and not side.customer.deleted:
        yield from (
            _ended_subscription(side, desired.plan_code)
            if our_subscription is None
            else _plan_findings(side, our_subscription, desired)
        )


def _undesired_subscription(side: _ProviderSide, subscription: ObservedSubscription, desired: DesiredState) -> Finding:
    if not desired.active:
        advice = f"the organization is deleted: end it in {side.provider_name} unless somebody means it to go on"
        return side.make_finding(
            "foreign_subscription", "subscription", None, subscription.plan_code, advice, observed=subscription
        )
    advice = "Lago charges for this plan: end it in Stripe, or have Stripe charge (charged_by)"
    return side.make_finding(
        "double_charging",
        "subscription",
        None,
        subscription.plan_code or subscription.id,
        advice,
        observed=subscription,
    )


def _foreign_subscriptions(side: _ProviderSide) -> Iterable[Finding]:
    our_subscription = side.subscription
    return (
        _foreign_subscription(side, each)
        for each in side.observed.subscriptions
        if our_subscription is None or each.id != our_subscription.id
    )


def _foreign_subscription(side: _ProviderSide, subscription: ObservedSubscription) -> Finding:
    advice = (
        f"we did not make {subscription.id} on {subscription.customer_id}, and it charges beside ours: end it "
        f"in {side.provider_name}, or end "
        "ours by changing the plan here; it is never joined by itself"
    )
    return side.make_finding(
        "foreign_subscription", "subscription", None, subscription.plan_code, advice, observed=subscription
    )


def _ended_subscription(side: _ProviderSide, plan_code: str) -> Iterable[Finding]:
    observed_subscriptions = side.observed.subscriptions
    has_marked_one = any(each.org_id == side.organization.id for each in observed_subscriptions)
    repairable = side.provider == "lago" and not has_marked_one
    if repairable:
        advice = "it ended in Lago, not by us; apply makes it again"
    elif side.provider == "lago":
        advice = "Lago has one under our id that is not active or is somebody else's: settle it there, then retry"
    else:
        advice = (
            "it ended in Stripe, not by us; to charge again, make one there for the customer with metadata "
            f"org_id={side.organization.id}, then `billing-sync retry {side.organization.id}` joins it"
        )
    yield side.make_finding(
        "missing", "subscription", plan_code, None, advice, object_id=side.link.subscription_id, repairable=repairable
    )


def _plan_findings(side: _ProviderSide, subscription: ObservedSubscription, desired: DesiredState) -> Iterable[Finding]:
    plan, next_plan = desired.plan_code, desired.next_plan_code
    if next_plan == plan:
        next_plan = None
    if (subscription.plan_code, subscription.next_plan_code) == (plan, next_plan) or _is_expected_plan_change(
        side, subscription, desired
    ):
        return
    if subscription.plan_code != plan:
        repairable = subscription.next_plan_code is None and _is_not_more_expensive(side, subscription.plan_code, plan)
        advice = (
            "apply has it charged by our plan at once"
            if repairable
            else (
                "apply lowers no price that somebody set and knows no foreign plan: correct it in "
                f"{side.provider_name}, or change the plan here to what was meant"
            )
        )
        yield side.make_finding(
            "wrong_plan", "plan", plan, subscription.plan_code, advice, observed=subscription, repairable=repairable
        )
        return
    advice = "apply schedules our next plan" if next_plan else "apply takes the scheduled plan back"
    yield side.make_finding(
        "wrong_plan",
        "next_plan",
        next_plan,
        subscription.next_plan_code,
        advice,
        observed=subscription,
        repairable=True,
    )


def _is_expected_plan_change(side: _ProviderSide, subscription: ObservedSubscription, desired: DesiredState) -> bool:
    """A scheduled plan that came before we asked, or will come on this biller's own day."""
    took_effect = desired.next_plan_code is not None and (subscription.plan_code, subscription.next_plan_code) == (
        desired.next_plan_code,
        None,
    )
    last_known_plans = (side.link.applied_plan, side.link.applied_next_plan)
    is_scheduled = (
        not desired.is_charging
        and last_known_plans[1] == desired.plan_code
        and (subscription.plan_code, subscription.next_plan_code) == last_known_plans
    )
    return took_effect or is_scheduled


def _is_not_more_expensive(side: _ProviderSide, their_code: str | None, our_code: str | None) -> bool:
    catalog = side.rules.catalog
    tiers = [catalog.tier_of(side.provider, code) if code is not None else None for code in (their_code, our_code)]
    amounts = [catalog.plans[tier].yearly_amount for tier in tiers if tier is not None]
    return len(amounts) == len(tiers) and amounts[0] <= amounts[1]


def _repair_for(side: _ProviderSide, findings: list[Finding]) -> Repair | None:
    """What one round makes again here. Nothing for a deleted organization: a round there ends what it finds."""
    desired = side.desired
    repairable = [each for each in findings if each.repairable]
    if not repairable or isinstance(desired, RejectedError) or side.link.customer_id is None:
        return None
    subscription = any(each.is_about_subscription for each in repairable)
    # A round that knows of no day for the plan that waits asks for it.
    needs_plan_date = (
        desired.is_charging and desired.next_plan_code is not None and side.organization.plan_effective_at is None
    )
    spec = None
    if desired.plan_code is not None and (subscription or needs_plan_date):
        spec = SubscriptionSpec(
            org_id=side.organization.id,
            customer_id=side.link.customer_id,
            plan_code=desired.plan_code,
            next_plan_code=desired.next_plan_code,
        )
    return Repair(
        org_id=side.organization.id,
        customer_id=side.link.customer_id,
        updates_customer=any(not each.is_about_subscription for each in repairable),
        subscription=spec,
        observed=side.subscription,
    )
