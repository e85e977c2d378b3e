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
from core.compare.desired_state import SECOND_PAYER, Policy, Wish, wish
from core.compare.findings import Finding, Kind, TheirWrite
from core.compare.local_state import Ours
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.ports.errors import RejectedError
from core.ports.observed import Repair, SeenCustomer, SeenSubscription, Sight
from core.ports.spec import Provider, SubscriptionSpec

NAMES: dict[Provider, str] = {"stripe": "Stripe", "lago": "Lago"}
CUSTOMERS_LOOKED_AT = 10
CLOCKS_MAY_DIFFER = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """``accounts``: whose our keys are, where it was asked."""

    catalog: Catalog
    policy: Policy
    accounts: Mapping[Provider, str] = field(default_factory=dict)


class Compared(NamedTuple):
    findings: list[Finding]
    repairs: dict[Provider, Repair]


def compare(ours: Ours, sights: Mapping[Provider, Sight], rules: Rules) -> Compared:
    """``sights`` may lack a biller: then nothing is said of it."""
    findings: list[Finding] = []
    repairs: dict[Provider, Repair] = {}
    for provider, sight in sorted(sights.items()):
        side = _Side(ours, provider, belonging(ours, provider, sight), rules)
        if (elsewhere := _elsewhere(side)) is not None:
            findings.append(elsewhere)
            continue
        here = [*_about_customers(side), *_about_subscriptions(side)]
        findings += here
        if (repair := _repair(side, here)) is not None:
            repairs[provider] = repair
    return Compared(findings, repairs)


def belonging(ours: Ours, provider: Provider, sight: Sight) -> Sight:
    """What of a sight concerns the organization: its known customer, those marked as its own, what is on them."""
    org_id, known = ours.organization.id, ours.links[provider].customer_id
    customers = {each.id: each for each in sight.customers if each.id == known or each.org_id == org_id}
    on = {*customers, *({known} if known else ())}
    subscriptions = {each.id: each for each in sight.subscriptions if each.org_id == org_id or each.customer_id in on}
    return Sight(
        customers=tuple(sorted(customers.values(), key=lambda each: each.id)),
        subscriptions=tuple(sorted(subscriptions.values(), key=lambda each: each.id)),
    )


def customers_of(ours: Ours, provider: Provider, sight: Sight) -> tuple[str, ...]:
    """The customers that must be looked at for the organization, the known one first."""
    known = ours.links[provider].customer_id
    named = {each.id for each in sight.customers} | {each.customer_id for each in sight.subscriptions}
    others = sorted(named - {known, ""} - {None})
    return tuple([*([known] if known else []), *others][:CUSTOMERS_LOOKED_AT])


class _Side:
    """One biller's half of the comparison."""

    def __init__(self, ours: Ours, provider: Provider, sight: Sight, rules: Rules) -> None:
        self.ours, self.provider, self.sight, self.rules = ours, provider, sight, rules

    @property
    def organization(self) -> Organization:
        return self.ours.organization

    @property
    def link(self) -> BillingLink:
        return self.ours.links[self.provider]

    @property
    def there(self) -> str:
        return NAMES[self.provider]

    @property
    def at_rest(self) -> bool:
        return self.link.state == "open"

    @cached_property
    def wanted(self) -> Wish | RejectedError:
        try:
            return wish(
                self.provider,
                self.organization,
                self.ours.other(self.provider),
                self.rules.catalog,
                self.rules.policy,
            )
        except RejectedError as error:
            return error

    @cached_property
    def customer(self) -> SeenCustomer | None:
        """The one that we know."""
        return next((each for each in self.sight.customers if each.id == self.link.customer_id), None)

    @cached_property
    def subscription(self) -> SeenSubscription | None:
        """The one that we made: at Lago it has our id, at Stripe we know its id or it bears our mark."""
        for each in self.sight.subscriptions:
            marked = each.org_id == self.organization.id and each.customer_id == self.link.customer_id
            if self.provider == "lago":
                if marked and each.begun:
                    return each
            elif each.id == self.link.subscription_id or (marked and self.link.subscription_id is None):
                return each
        return None

    def finding(  # noqa: PLR0913 - a finding has so many fields
        self,
        kind: Kind,
        field: str,
        ours: str | None,
        theirs: str | None,
        to_do: str,
        *,
        seen: SeenCustomer | SeenSubscription | None = None,
        object_id: str | None = None,
        repaired: bool = False,
    ) -> Finding:
        return Finding(
            kind=kind,
            provider=self.provider,
            object_id=seen.id if seen is not None else object_id,
            field=field,
            ours=ours,
            theirs=theirs,
            repaired=repaired,
            to_do=to_do,
            their_write=self._writer(seen) if seen is not None and seen.changed_at is not None else None,
        )

    def _writer(self, seen: SeenCustomer | SeenSubscription) -> TheirWrite:
        """What the object's own times tell: written after our last round there, it was not by us."""
        synced_at, at = self.link.synced_at, seen.changed_at
        later = synced_at is not None and at is not None and at > synced_at + CLOCKS_MAY_DIFFER
        return TheirWrite(by="not us" if later else "unknown", at=at)


def _elsewhere(side: _Side) -> Finding | None:
    """Its ids are of another account than our key, where they mean nothing."""
    theirs, account = side.rules.accounts.get(side.provider), side.link.account_id
    if not side.at_rest or None in {theirs, account} or theirs == account:
        return None
    to_do = (
        f"its ids are of the account {account}, our key is of {theirs}: bring the ids that it has there with "
        f"update_org_billing_ids({side.organization.id!r}, {side.provider}_id=…)"
    )
    return side.finding("wrong_account", "account_id", account, theirs, to_do, object_id=side.link.customer_id)


def _about_customers(side: _Side) -> Iterable[Finding]:
    known = side.link.customer_id
    others = [each for each in side.sight.customers if each.id != known and not each.deleted]
    if known is None:
        if len(others) == 1 and _learns_it_itself(side):
            return
        kind: Kind = "unknown_customer" if len(others) == 1 else "duplicate"
        for each in others:
            to_do = f"bring the right one with update_org_billing_ids({side.organization.id!r}, {side.provider}_id=…)"
            yield side.finding(kind, "customer_id", None, each.id, to_do, seen=each)
        return
    if side.at_rest and (side.customer is None or side.customer.deleted):
        yield _gone(side, known, others)
    else:
        for each in others:
            to_do = (
                f"{known} is the one that we use: keep it, move what {each.id} owes, and clear metadata.org_id of "
                f"{each.id} in Stripe; never delete the one with invoices"
            )
            yield side.finding("duplicate", "metadata.org_id", known, each.id, to_do, seen=each)
    if side.at_rest and side.customer is not None and not side.customer.deleted:
        yield from _fields(side, side.customer)


def _learns_it_itself(side: _Side) -> bool:
    """Made by us, the answer lost, then parked or deleted: the next round that makes anything there knows it.

    At Lago by our own id, at Stripe by the create that is written down. What an import holds back waits for a person.
    """
    if side.provider == "lago":
        return side.link.state != "held"
    making = side.link.intent is not None and side.link.intent["operation"] == "create_customer"
    return side.link.state == "parked" and making


def _gone(side: _Side, known: str, others: list[SeenCustomer]) -> Finding:
    """Only Stripe says that one was deleted; at Lago, another one under our id proves it."""
    bring = f"bring the right id with update_org_billing_ids({side.organization.id!r}, {side.provider}_id=…)"
    theirs = ", ".join(each.id for each in others) or None
    kind: Kind = "missing"
    if side.customer is not None:
        kind, to_do = "deleted", f"deleted in {side.there}, which is final: {bring}"
    elif others and side.provider == "lago":
        kind, to_do = "deleted", f"deleted in Lago and made anew there: {bring}"
    elif others:
        to_do = f"{side.there} does not know ours, but another one bears our mark: if that is the right one, {bring}"
    else:
        to_do = (
            f"{side.there} knows no such customer: deleted there, or a key of another account; check the key, or make "
            f"one there marked as {side.organization.id} and {bring}"
        )
    return side.finding(kind, "customer_id", known, theirs, to_do, object_id=known)


def _fields(side: _Side, seen: SeenCustomer) -> Iterable[Finding]:
    wanted = side.wanted
    if isinstance(wanted, RejectedError) or not wanted.alive:
        return
    spec = wanted.customer
    if seen.org_id != side.organization.id:
        yield _back_link(side, seen)
        if seen.org_id is not None:
            return
    pairs: list[tuple[Kind, str, str | None, str | None]] = [
        ("renamed", "name", spec.name, seen.name),
        ("email", "email", spec.email, seen.email),
    ]
    for kind, name, mine, theirs in pairs:
        if mine is not None and mine != theirs:
            to_do = f"apply writes our {name} there"
            yield side.finding(kind, name, mine, theirs, to_do, seen=seen, repaired=True)
    if side.provider == "lago":
        yield from _lago_fields(side, seen, wanted)


def _back_link(side: _Side, seen: SeenCustomer) -> Finding:
    if seen.org_id is None:
        return side.finding(
            "back_link",
            "metadata.org_id",
            side.organization.id,
            None,
            "apply marks the customer as ours again",
            seen=seen,
            repaired=True,
        )
    to_do = (
        f"two organizations claim {seen.id}: correct metadata.org_id in {side.there}, or bring this organization's own "
        f"customer with update_org_billing_ids({side.organization.id!r}, {side.provider}_id=…)"
    )
    return side.finding("back_link", "metadata.org_id", side.organization.id, seen.org_id, to_do, seen=seen)


def _lago_fields(side: _Side, seen: SeenCustomer, wanted: Wish) -> Iterable[Finding]:
    spec = wanted.customer
    if spec.currency is not None and seen.currency != spec.currency:
        repaired = seen.currency is None
        to_do = (
            "apply writes our currency there"
            if repaired
            else "Lago does not change the currency of a customer that was charged: correct ours, or settle it there"
        )
        yield side.finding("currency", "currency", spec.currency, seen.currency, to_do, seen=seen, repaired=repaired)
    if spec.unlinked and seen.payer_id is not None:
        to_do = "Stripe charges for this plan: unlink the payment provider of the customer in Lago"
        yield side.finding("second_payer", "provider_customer_id", None, seen.payer_id, to_do, seen=seen)
    elif spec.payer_id is not None and seen.payer_id != spec.payer_id:
        repaired = seen.payer_id is None
        to_do = (
            "apply tells Lago the Stripe customer that it charges"
            if repaired
            else "Lago charges somebody else, and another payer would lose the payment methods: decide which one it is"
        )
        yield side.finding(
            "broken_link",
            "provider_customer_id",
            spec.payer_id,
            seen.payer_id,
            to_do,
            seen=seen,
            repaired=repaired,
        )


def _about_subscriptions(side: _Side) -> Iterable[Finding]:
    wanted = side.wanted
    if isinstance(wanted, RejectedError):
        if side.at_rest:
            kind: Kind = "second_payer" if wanted.code == SECOND_PAYER else "wrong_plan"
            yield side.finding(kind, "plan", side.organization.plan_tier, None, wanted.message)
        # What we cannot wish for now says nothing of what others sell it.
        yield from _foreign_ones(side)
        return
    if wanted.plan_code is None:
        for each in side.sight.subscriptions:
            yield _unwanted(side, each, wanted)
        return
    yield from _foreign_ones(side)
    ours = side.subscription
    if side.at_rest and side.customer is not None and not side.customer.deleted:
        yield from _ended(side, wanted.plan_code) if ours is None else _plans(side, ours, wanted)


def _unwanted(side: _Side, seen: SeenSubscription, wanted: Wish) -> Finding:
    if not wanted.alive:
        to_do = f"the organization is deleted: end it in {side.there} unless somebody means it to go on"
        return side.finding("foreign_subscription", "subscription", None, seen.plan_code, to_do, seen=seen)
    to_do = "Lago charges for this plan: end it in Stripe, or have Stripe charge (charged_by)"
    return side.finding("second_payer", "subscription", None, seen.plan_code or seen.id, to_do, seen=seen)


def _foreign_ones(side: _Side) -> Iterable[Finding]:
    ours = side.subscription
    return (_foreign(side, each) for each in side.sight.subscriptions if ours is None or each.id != ours.id)


def _foreign(side: _Side, seen: SeenSubscription) -> Finding:
    to_do = (
        f"we did not make {seen.id} on {seen.customer_id}, and it charges beside ours: end it in {side.there}, or end "
        "ours by changing the plan here; it is never joined by itself"
    )
    return side.finding("foreign_subscription", "subscription", None, seen.plan_code, to_do, seen=seen)


def _ended(side: _Side, plan_code: str) -> Iterable[Finding]:
    there = side.sight.subscriptions
    strays = any(each.org_id == side.organization.id for each in there)
    repaired = side.provider == "lago" and not strays
    if repaired:
        to_do = "it ended in Lago, not by us; apply makes it again"
    elif side.provider == "lago":
        to_do = "Lago has one under our id that is not active or is somebody else's: settle it there, then retry"
    else:
        to_do = (
            "it ended in Stripe, not by us; to charge again, make one there for the customer with metadata "
            f"org_id={side.organization.id}, then `billing-sync retry {side.organization.id}` joins it"
        )
    yield side.finding(
        "missing", "subscription", plan_code, None, to_do, object_id=side.link.subscription_id, repaired=repaired
    )


def _plans(side: _Side, seen: SeenSubscription, wanted: Wish) -> Iterable[Finding]:
    plan, following = wanted.plan_code, wanted.next_plan_code
    if following == plan:
        following = None
    if (seen.plan_code, seen.next_plan_code) == (plan, following) or _comes_by_itself(side, seen, wanted):
        return
    if seen.plan_code != plan:
        repaired = seen.next_plan_code is None and _is_no_dearer(side, seen.plan_code, plan)
        to_do = (
            "apply has it charged by our plan at once"
            if repaired
            else f"apply lowers no price that somebody set and knows no foreign plan: correct it in {side.there}, or "
            "change the plan here to what was meant"
        )
        yield side.finding("wrong_plan", "plan", plan, seen.plan_code, to_do, seen=seen, repaired=repaired)
        return
    to_do = "apply schedules our next plan" if following else "apply takes the scheduled plan back"
    yield side.finding("wrong_plan", "next_plan", following, seen.next_plan_code, to_do, seen=seen, repaired=True)


def _comes_by_itself(side: _Side, seen: SeenSubscription, wanted: Wish) -> bool:
    """A scheduled plan that came before we asked, or will come on this biller's own day."""
    came = wanted.next_plan_code is not None and (seen.plan_code, seen.next_plan_code) == (wanted.next_plan_code, None)
    before = (side.link.applied_plan, side.link.applied_next_plan)
    waits = not wanted.settles and before[1] == wanted.plan_code and (seen.plan_code, seen.next_plan_code) == before
    return came or waits


def _is_no_dearer(side: _Side, theirs: str | None, ours: str | None) -> bool:
    catalog = side.rules.catalog
    tiers = [catalog.tier_of(side.provider, code) if code is not None else None for code in (theirs, ours)]
    amounts = [catalog.plans[tier].yearly_amount for tier in tiers if tier is not None]
    return len(amounts) == len(tiers) and amounts[0] <= amounts[1]


def _repair(side: _Side, findings: list[Finding]) -> Repair | None:
    """What one round makes again here. Nothing for a deleted organization: a round there ends what it finds."""
    wanted = side.wanted
    repaired = [each for each in findings if each.repaired]
    if not repaired or isinstance(wanted, RejectedError) or side.link.customer_id is None:
        return None
    subscription = any(each.about_subscription for each in repaired)
    # A round that knows of no day for the plan that waits asks for it.
    asks = wanted.settles and wanted.next_plan_code is not None and side.organization.plan_effective_at is None
    spec = None
    if wanted.plan_code is not None and (subscription or asks):
        spec = SubscriptionSpec(
            org_id=side.organization.id,
            customer_id=side.link.customer_id,
            plan_code=wanted.plan_code,
            next_plan_code=wanted.next_plan_code,
        )
    return Repair(
        org_id=side.organization.id,
        customer_id=side.link.customer_id,
        customer=any(not each.about_subscription for each in repaired),
        subscription=spec,
        seen=side.subscription,
    )
