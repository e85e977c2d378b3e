"""A row proposes what changes nothing that somebody pays, and says why not where that is impossible."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from core.adoption.matching import AccountCustomer, AdoptionOrganization, Likeness, Match
from core.adoption.proposal import ProposalRules, propose
from core.adoption.row import AdoptionRow
from core.catalog.plans import Catalog, CatalogPlan, EndingPolicy, FormerCodes
from core.ports.arrangement import Arrangement
from core.ports.inventory import InventoryCustomer, InventoryItem, InventorySubscription
from core.ports.spec import Provider


def plan(tier: str, rank: int, amount: int, **fields: Any) -> CatalogPlan:  # noqa: ANN401
    return CatalogPlan(
        tier=tier,
        rank=rank,
        name=tier,
        amount=amount,
        currency="USD",
        interval="monthly",
        lago_plan_code=tier,
        stripe_lookup_key=f"{tier}_usd",
        **fields,
    )


CATALOG = Catalog(
    ending=EndingPolicy(
        lago_invoice="generate", lago_credit_note="credit", stripe_invoice_now=True, stripe_prorate=True
    ),
    plans={
        "starter": plan("starter", 1, 1900, charged_by="lago", former_codes=FormerCodes(lago=["starter_2023"])),
        "pro": plan("pro", 2, 4900, charged_by="stripe", former_codes=FormerCodes(stripe=["pro_2023"])),
        "old": plan("old", 5, 3900, charged_by="stripe", offered=False),
        "scale": plan("scale", 3, 9900, charged_by="stripe"),
        "twin": plan("twin", 4, 9900, charged_by="stripe"),
    },
)
RULES = ProposalRules(catalog=CATALOG)
NOON = datetime(2026, 12, 24, 12, tzinfo=UTC)


def item(code: str | None, amount: int | None, **fields: Any) -> InventoryItem:  # noqa: ANN401
    base = {"price_id": f"price_{code}", "currency": "USD", "interval": "month", **fields}
    return InventoryItem(code=code, amount=amount, **base)


def subscription(*items: InventoryItem, **fields: Any) -> InventorySubscription:  # noqa: ANN401
    return InventorySubscription(id="sub_1", customer_id="c", items=items, **fields)


def stripe(*subscriptions: InventorySubscription, **fields: Any) -> AccountCustomer:  # noqa: ANN401
    customer = InventoryCustomer(id="cus_1", name="Acme", email="a@example.com", **fields)
    return AccountCustomer(provider="stripe", customer=customer, subscriptions=subscriptions)


def lago(*subscriptions: InventorySubscription, payer: str | None = "cus_1", **fields: Any) -> AccountCustomer:  # noqa: ANN401
    base = {"name": "Acme at Lago", "email": "b@example.com", **fields}
    customer = InventoryCustomer(id="7d1f", external_id="acct-1", payer_id=payer, **base)
    return AccountCustomer(provider="lago", customer=customer, subscriptions=subscriptions)


def organization(plan_tier: str = "starter", **fields: Any) -> AdoptionOrganization:  # noqa: ANN401
    return AdoptionOrganization(id="org_1", name="Ours", email="o@example.com", plan_tier=plan_tier, links={}, **fields)


def proposed(
    *sides: AccountCustomer, org: AdoptionOrganization | None = None, likenesses: tuple[Likeness, ...] = ()
) -> AdoptionRow:
    by_provider: dict[Provider, AccountCustomer] = {each.provider: each for each in sides}
    return propose(Match(organization=org, sides=by_provider, matched_by=None, likenesses=likenesses), RULES)


PRO = item("pro_usd", 4900)
STARTER = item("starter", 1900)


@pytest.mark.parametrize(
    ("sides", "org"),
    [
        ([stripe(), lago(subscription(STARTER))], None),
        ([stripe(), lago(subscription(STARTER))], organization()),
        ([stripe(subscription(PRO))], None),
        ([stripe(subscription(PRO)), lago(payer=None)], organization("pro")),
        ([stripe(subscription(PRO)), lago(subscription(item("pro", 4900)), payer=None)], None),
        ([stripe(subscription(item("pro_2023", 4900)))], None),
    ],
)
def test_a_plain_subscription_at_the_catalogs_price_is_adopted(
    sides: list[AccountCustomer], org: AdoptionOrganization | None
) -> None:
    row = proposed(*sides, org=org)
    assert (row.action, row.difference, row.currency) == ("adopt", 0, "USD")
    assert row.reason.startswith(f"it is at the catalog's price of {row.plan_tier}, ")


@pytest.mark.parametrize(
    ("sides", "difference", "says"),
    [
        ([stripe(subscription(item("pro_2023", 3900)))], 1000, "a price of its own (pro_2023)"),
        ([stripe(subscription(item("pro_usd", 4900, quantity=3)))], 0, "quantity 3"),
        ([stripe(subscription(PRO, discounts=("20 % off",)))], 0, "20 % off"),
        ([stripe(subscription(PRO), discounts=("5.00 USD off once",))], 0, "5.00 USD off once"),
        ([stripe(subscription(PRO, trial_ends_at=NOON, status="trialing"))], 0, "a trial until 2026-12-24"),
        ([stripe(subscription(PRO, arrangement=Arrangement(is_paused=True)))], 0, "a pause at Stripe"),
        ([stripe(subscription(PRO, arrangement=Arrangement(ends_at=NOON)))], 0, "a planned end on 2026-12-24"),
        ([stripe(subscription(PRO, is_paid_manually=True))], 0, "its invoices are mailed"),
        ([stripe(subscription(PRO, status="past_due"))], 0, "Stripe could not charge its last invoice"),
        ([stripe(subscription(item(None, 4900)))], 0, "price_None is no price of plans.toml and costs the same"),
        ([stripe(), lago(subscription(item("starter_2023", 1500)))], 400, "a price of its own (starter_2023)"),
        ([stripe(), lago(subscription(item("starter", 1700)))], 200, "a price of its own (starter)"),
        ([stripe(), lago(subscription(STARTER), discounts=("10 % off",))], 0, "10 % off"),
        ([stripe(), lago(subscription(STARTER, is_paid_manually=True))], 0, "its invoices are paid by hand"),
        ([stripe(), lago(subscription(replace(STARTER, unusual=("it has a minimum",))))], 0, "it has a minimum"),
    ],
)
def test_any_other_terms_are_kept(sides: list[AccountCustomer], difference: int, says: str) -> None:
    row = proposed(*sides)
    assert (row.action, row.difference) == ("adopt-keep-price", difference)
    assert says in row.reason


@pytest.mark.parametrize(
    ("sides", "org", "begins"),
    [
        # Prices that no plan has, or more than one.
        ([stripe(subscription(item(None, 2900)))], None, "it pays 29.00 USD a month under price_None, a price without"),
        ([stripe(subscription(item("own", 2900)))], None, "it pays 29.00 USD a month under the code own at Stripe"),
        ([stripe(subscription(item(None, 9900)))], None, "it pays 99.00 USD a month under price_None"),
        ([lago(subscription(item("gold", 1900)))], None, "it pays 19.00 USD a month under the code gold at Lago"),
        ([stripe(subscription(item(None, 4900, bills_usage=True)))], None, "it pays 49.00 USD a month under"),
        ([stripe(subscription(item("pro_usd", None, unusual=("tiers",))))], None, "pro_usd at Stripe has no flat amou"),
        # Subscriptions that are not one plain one.
        ([stripe(subscription(PRO), subscription(PRO))], None, "it has 2 subscriptions at Stripe: sub_1, sub_1"),
        ([stripe(subscription(PRO, STARTER))], None, "its subscription at Stripe has 2 items (pro_usd, starter)"),
        ([lago(subscription(STARTER, status="pending"))], None, "its subscription at Lago is pending"),
        ([stripe(subscription(PRO, status="incomplete"))], None, "its subscription at Stripe is incomplete"),
        (
            [stripe(), lago(subscription(STARTER, arrangement=Arrangement(waits_for_payment=True)))],
            None,
            "an upgrade of its subscription at Lago waits for a payment",
        ),
        ([stripe(), lago(subscription(STARTER, next_code="pro"))], None, "pro follows at Lago when the period ends"),
        # Terms that differ from the plan's.
        ([stripe(subscription(replace(PRO, currency="EUR")))], None, "it pays 49.00 EUR a month at Stripe, and pro"),
        ([stripe(subscription(replace(PRO, interval="year")))], None, "it pays 49.00 USD a year at Stripe, and pro"),
        ([stripe(subscription(PRO), currency="EUR")], None, "cus_1 at Stripe is billed in EUR, and pro costs 49.00"),
        # Plans that differ from ours, or between both.
        (
            [stripe(), lago(subscription(STARTER))],
            organization("pro"),
            "it pays 19.00 USD a month for starter, and org_1",
        ),
        ([stripe(), lago(subscription(STARTER))], organization("gone"), "org_1 is on gone, which is not in plans.toml"),
        ([stripe(), lago(subscription(STARTER))], organization(currency="EUR"), "org_1 is billed in EUR, and starter"),
        ([stripe(), lago(subscription(STARTER))], organization(status="deleted"), "org_1 is deleted, and the customer"),
        (
            [stripe(subscription(PRO)), lago(subscription(item("starter", 1900)), payer=None)],
            None,
            "Stripe has pro_usd, 49.00 USD a month and Lago has starter, 19.00 USD a month",
        ),
        # Who charges.
        (
            [stripe(subscription(PRO)), lago(subscription(STARTER))],
            None,
            "Stripe charges 49.00 USD a month, and Lago charges 19.00 USD a month to cus_1",
        ),
        (
            [stripe(subscription(item("starter_usd", 1900)))],
            None,
            "it pays 19.00 USD a month at Stripe, and Lago charg",
        ),
        (
            [lago(subscription(item("pro", 4900)))],
            None,
            "it pays 49.00 USD a month at Lago, and Stripe charges for pro",
        ),
        ([lago(subscription(item("pro", 4900)), payer=None)], None, "Lago charges nobody for it, and Stripe charges"),
        ([stripe(subscription(PRO)), lago()], None, "Stripe charges for it, and Lago has cus_1 as its payer"),
        # Names that an organization cannot have.
        ([lago(subscription(STARTER), name=None)], None, "acct-1 at Lago has no name"),
        ([lago(subscription(STARTER), name="a\x07")], None, "an organization cannot have the name of acct-1 at Lago"),
    ],
)
def test_what_could_change_what_is_paid_is_a_conflict_with_a_reason(
    sides: list[AccountCustomer], org: AdoptionOrganization | None, begins: str
) -> None:
    row = proposed(*sides, org=org)
    assert row.action == "conflict"
    assert row.reason.startswith(begins)


def test_a_conflict_over_the_plan_names_both_amounts() -> None:
    row = proposed(stripe(), lago(subscription(STARTER)), org=organization("pro"))
    assert "19.00 USD a month for starter" in row.reason
    assert "pro, 49.00 USD a month" in row.reason


def test_a_plan_that_is_sold_no_longer_is_given_by_the_command_that_adopts() -> None:
    """``set`` refuses it, so the advice names the customers of the row."""
    row = proposed(stripe(subscription(item("old_usd", 3900))), lago(payer=None), org=organization("pro"))
    assert (row.action, row.plan_tier) == ("conflict", "old")
    assert (
        "org_1 is on pro, 49.00 USD a month; if old is right: `billing-sync adopt org_1 --their-plan --stripe cus_1 "
        "--lago acct-1`, because it is sold no longer; if not, change the plan there"
    ) in row.reason
    gone = proposed(stripe(subscription(item("old_usd", 3900))), org=organization("gone"))
    assert "org_1 is on gone, which is not in plans.toml; if old is right: `billing-sync adopt org_1" in gone.reason


@pytest.mark.parametrize("next_tier", [None, "starter"])
def test_their_plan_replaces_ours_where_an_operator_says_so(next_tier: str | None) -> None:
    rules = ProposalRules(catalog=CATALOG, takes_their_plan=True)
    side = stripe(subscription(item("old_usd", 3900)))
    match = Match(organization=organization("pro", next_plan_tier=next_tier), sides={"stripe": side}, matched_by=None)
    row = propose(match, rules)
    assert (row.action, row.plan_tier) == ("adopt", "old")
    assert row.reason.endswith("; org_1 changes from pro to old")
    is_other = propose(replace(match, organization=organization("pro", currency="EUR")), rules)
    assert (is_other.action, "is billed in EUR" in is_other.reason) == ("conflict", True)


def test_a_plan_of_ours_that_is_scheduled_and_is_paid_already_is_no_conflict() -> None:
    """That is what the advice of the conflict schedules where the plan that is paid is the lower one."""
    sides = [stripe(), lago(subscription(STARTER))]
    assert "`billing-sync set org_1 --plan starter`" in proposed(*sides, org=organization("pro")).reason
    row = proposed(*sides, org=organization("pro", next_plan_tier="starter"))
    assert (row.action, row.plan_tier) == ("adopt", "starter")
    assert row.reason.endswith("; org_1 changes from pro to starter")


def test_the_scheduled_plan_of_the_organization_may_follow_at_the_provider() -> None:
    sides = [stripe(subscription(PRO, next_code="scale_usd"))]
    assert proposed(*sides, org=organization("pro", next_plan_tier="scale")).action == "adopt"
    assert proposed(*sides, org=organization("pro", next_plan_tier="twin")).action == "conflict"


def test_a_downgrade_of_ours_that_is_not_scheduled_at_the_provider_is_a_conflict() -> None:
    row = proposed(stripe(subscription(item("scale_usd", 9900))), org=organization("scale", next_plan_tier="pro"))
    assert row.action == "conflict"
    assert (
        "org_1 changes to pro when the period ends, and that is not scheduled at the provider; "
        "`billing-sync set org_1 --plan scale` cancels it, then discover again"
    ) in row.reason


def test_the_plan_of_the_organization_decides_between_two_that_cost_the_same() -> None:
    row = proposed(stripe(subscription(item(None, 9900))), org=organization("twin"))
    assert (row.action, row.plan_tier) == ("adopt-keep-price", "twin")


def test_an_organization_without_subscription_is_told_what_begins_and_what_it_costs() -> None:
    row = proposed(stripe(), lago(), org=organization())
    assert (row.action, row.plan_tier, row.difference, row.currency) == ("adopt", "starter", 1900, "USD")
    assert row.reason == (
        "it has no subscription; once it is managed, billing-sync begins starter at Lago (19.00 USD a month)"
    )
    row = proposed(lago(payer=None), org=organization("pro"))
    assert row.difference == 4900
    assert row.reason.endswith(
        "begins a customer at Stripe and pro at Lago (which charges nobody) and pro at Stripe (49.00 USD a month)"
    )


def test_what_begins_to_charge_is_the_whole_price_more() -> None:
    row = proposed(stripe(), lago(subscription(item("pro", 4900)), payer=None), org=organization("pro"))
    assert (row.action, row.difference) == ("adopt", 4900)
    assert "billing-sync begins pro at Stripe (49.00 USD a month)" in row.reason


def test_a_customer_without_subscription_and_organization_is_skipped() -> None:
    assert proposed(stripe()).action == "skip"
    assert proposed(stripe(), org=organization(status="deleted")).action == "skip"


def test_no_payer_is_told_and_none_is_given() -> None:
    row = proposed(lago(subscription(STARTER), payer=None), org=organization())
    assert row.action == "adopt"
    assert "Lago has no payer for it, so it charges nobody, and adopting gives it none" in row.reason


@pytest.mark.parametrize(
    ("likeness", "action", "suggestion"),
    [
        (Likeness(similarity="name", org_id="org_2"), "conflict", "org_2: the same name"),
        (Likeness(similarity="address", org_id="org_2"), "conflict", "org_2: the same address"),
        (Likeness(similarity="metadata", org_id="org_2"), "conflict", "org_2: metadata that names it"),
        (
            Likeness(similarity="name", provider="stripe", customer_id="cus_2"),
            "conflict",
            "cus_2 at Stripe: the same name",
        ),
        (Likeness(similarity="address", provider="lago", customer_id="b"), "conflict", "b at Lago: the same address"),
        (Likeness(similarity="address", provider="stripe", customer_id="cus_2"), "adopt", None),
    ],
)
def test_names_and_addresses_are_suggestions(likeness: Likeness, action: str, suggestion: str | None) -> None:
    row = proposed(stripe(subscription(PRO)), likenesses=(likeness,))
    assert (row.action, row.suggestion, row.org_id) == (action, suggestion, None)
    assert ("cus_2 at Stripe has the same address" in row.reason) is (action == "adopt")
    assert proposed(stripe(subscription(PRO)), org=organization("pro"), likenesses=(likeness,)).action == "adopt"


def test_what_may_be_one_at_both_providers_is_adopted_one_after_the_other() -> None:
    at_lago = Likeness(similarity="name", provider="lago", customer_id="b")
    reason = proposed(stripe(subscription(PRO)), likenesses=(at_lago,)).reason
    assert "adopt this row first with adopt-keep-price, and then the other one into the new organization: " in reason
    assert "`billing-sync adopt NEW_ORG --lago b`; if not, choose adopt-keep-price" in reason
    at_stripe = Likeness(similarity="name", provider="stripe", customer_id="cus_2")
    assert "choose skip for one of them" in proposed(stripe(subscription(PRO)), likenesses=(at_stripe,)).reason


@pytest.mark.parametrize(
    ("sides", "org", "name_source", "email_source"),
    [
        ([stripe(), lago(subscription(STARTER))], None, "lago", "lago"),
        ([stripe(subscription(PRO)), lago(payer=None)], None, "stripe", "stripe"),
        ([stripe(), lago(subscription(STARTER), name=None, email="no address")], organization(), "stripe", "stripe"),
        ([lago(subscription(STARTER), name=None, email=None)], organization(), "ours", "ours"),
    ],
)
def test_theirs_is_what_counts_unless_an_organization_cannot_have_it(
    sides: list[AccountCustomer], org: AdoptionOrganization | None, name_source: str, email_source: str
) -> None:
    row = proposed(*sides, org=org)
    assert (row.name_source, row.email_source) == (name_source, email_source)
    assert row.our_name == ("Ours" if org else None)


def test_without_a_subscription_nothing_is_paid_in_any_currency() -> None:
    assert proposed(stripe(currency="USD")).sides["stripe"].currency is None


def test_the_catalogs_price_is_never_proposed_for_another_one() -> None:
    assert proposed(stripe(subscription(item("pro_usd", 100)))).action == "adopt-keep-price"
