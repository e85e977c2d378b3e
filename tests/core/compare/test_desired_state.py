"""What a biller must hold: computed from the row and the catalog alone, and never two who charge."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from core.catalog import plans as plan_catalog
from core.catalog.plans import Catalog, ChargingProvider, FormerCodes
from core.compare.desired_state import DesiredState, PayerPolicy, customer_fingerprint, desired_state
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.ports.errors import RejectedError
from core.ports.spec import PROVIDERS, Provider

LINKED = PayerPolicy(sends_payer_to_lago=True)


def organization(**changes: Any) -> Organization:  # noqa: ANN401 - columns of all types
    now = datetime(2026, 11, 23, tzinfo=UTC)
    row = {
        "id": "org_1",
        "name": "Acme",
        "plan_tier": "professional",
        "status": "active",
        "created_at": now,
        "updated_at": now,
        "version": 1,
    }
    return Organization(**(row | changes))


def link(provider: Provider, **changes: Any) -> BillingLink:  # noqa: ANN401 - columns of all types
    return BillingLink(org_id="org_1", provider=provider, **changes)


def charged_by(who: ChargingProvider, *tiers: str) -> Catalog:
    plans = plan_catalog.load()
    changed = {
        tier: plan.model_copy(update={"charged_by": who}) if not tiers or tier in tiers else plan
        for tier, plan in plans.plans.items()
    }
    return plans.model_copy(update={"plans": changed})


def desired_at(provider: Provider, plans: Catalog, other: BillingLink | None = None, **changes: Any) -> DesiredState:  # noqa: ANN401
    there: Provider = "lago" if provider == "stripe" else "stripe"
    links = {provider: link(provider), there: other or link(there)}
    return desired_state(provider, organization(**changes), links, plans, LINKED)


def test_where_lago_charges_stripe_holds_the_customer_only() -> None:
    plans = charged_by("lago")
    stripe, lago = desired_at("stripe", plans), desired_at("lago", plans)
    assert (stripe.plan_code, stripe.is_charging, stripe.provides_payer) == (None, False, True)
    assert (lago.plan_code, lago.is_charging, lago.waits_for_payer) == ("professional", True, True)


def test_where_stripe_charges_lago_holds_a_subscription_and_no_payer() -> None:
    plans = charged_by("stripe")
    confirmed = link("stripe", customer_id="cus_1", customer_state="applied")
    stripe, lago = desired_at("stripe", plans), desired_at("lago", plans, confirmed)
    assert (stripe.plan_code, stripe.is_charging, stripe.provides_payer) == ("professional_monthly_usd", True, False)
    assert (lago.plan_code, lago.is_charging, lago.waits_for_payer) == ("professional", False, False)
    assert (lago.customer.payer_id, lago.customer.charged_by_other_provider) == (None, True)


FULL, USAGE, FORMER = "professional", "professional_usage", "professional_usage_2024"
IN_LAGO = {
    # Who charges, the pending tier, and the sold, scheduled and target code: the plan, the next one and its amount.
    ("stripe", None, None, None, None): (USAGE, None, None),
    ("stripe", None, FULL, None, None): (FULL, None, None),
    ("stripe", None, FULL, None, USAGE): (USAGE, None, None),
    ("stripe", None, FULL, USAGE, None): (USAGE, None, None),
    ("stripe", None, USAGE, None, None): (USAGE, None, None),
    ("stripe", None, FORMER, None, None): (FORMER, None, None),
    ("stripe", None, "enterprise", None, None): (USAGE, None, None),
    ("stripe", "starter", None, None, None): (USAGE, None, None),
    ("stripe", "starter", USAGE, None, None): (USAGE, None, None),
    ("stripe", "founders_friend", USAGE, None, None): (USAGE, None, None),
    ("stripe", "starter", FULL, None, None): (FULL, "starter_usage", 0),
    ("stripe", "starter", FULL, "starter", None): (FULL, "starter", 1900),
    ("stripe", "founders_friend", FULL, None, None): (FULL, "founders_friend", 0),
    ("stripe", "starter", FULL, None, USAGE): (USAGE, None, None),
    ("stripe", "starter", FULL, USAGE, None): (USAGE, None, None),
    ("lago", None, None, None, None): (FULL, None, None),
    ("lago", None, USAGE, None, None): (FULL, None, None),
    ("lago", None, FORMER, None, None): (FULL, None, None),
    ("lago", None, FULL, USAGE, USAGE): (FULL, None, None),
    ("lago", "starter", USAGE, None, None): (FULL, "starter", 1900),
    ("lago", "starter", USAGE, "starter_usage", None): (FULL, "starter", 1900),
}


def with_usage_plans(plans: Catalog) -> Catalog:
    changed = {
        tier: plan.model_copy(
            update={
                "lago_usage_plan_code": f"{tier}_usage" if plan.amount else None,
                "former_codes": FormerCodes(lago_usage=[f"{tier}_usage_2024"]),
            }
        )
        for tier, plan in plans.plans.items()
    }
    return plans.model_copy(update={"plans": changed})


@pytest.mark.parametrize("case", sorted(IN_LAGO, key=str))
def test_which_plan_lago_has_and_which_one_it_schedules(
    case: tuple[ChargingProvider, str | None, str | None, str | None, str | None],
) -> None:
    charger, pending, sold, scheduled, target = case
    lago = link("lago", sold_plan=sold, applied_next_plan=scheduled, target_plan=target)
    links: dict[Provider, BillingLink] = {"lago": lago, "stripe": link("stripe")}
    plans = with_usage_plans(charged_by(charger))
    made = desired_state("lago", organization(pending_plan_tier=pending), links, plans, LINKED)
    assert (made.plan_code, made.next_plan_code, made.next_plan_amount) == IN_LAGO[case]
    assert made.lago_plan_is_unpaid == (made.plan_code in {USAGE, FORMER})


@pytest.mark.parametrize(("state", "payer"), [("unconfirmed", None), ("applied", "cus_1"), ("unknown", "cus_1")])
def test_only_a_payer_that_stripe_confirmed_is_told_to_lago(state: str, payer: str | None) -> None:
    other = link("stripe", customer_id="cus_1", customer_state=state)
    assert desired_at("lago", charged_by("lago"), other).customer.payer_id == payer


def test_without_a_connection_nobody_is_linked_and_nobody_waits() -> None:
    other = link("stripe", customer_id="cus_1", customer_state="applied")
    links: dict[Provider, BillingLink] = {"lago": link("lago"), "stripe": other}
    made = desired_state("lago", organization(), links, charged_by("lago"), PayerPolicy())
    assert (made.customer.payer_id, made.waits_for_payer) == (None, False)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("field", ["plan_tier", "pending_plan_tier"])
def test_an_unknown_plan_is_refused_with_the_known_ones_and_never_free(provider: Provider, field: str) -> None:
    with pytest.raises(RejectedError, match=r"not in the catalog.*founders_friend, starter") as caught:
        desired_at(provider, charged_by("lago"), None, **{field: "gold"})
    assert caught.value.code == "unknown_plan"


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("euro_tier", ["professional", "starter"])
def test_a_plan_in_another_currency_is_rejected_before_a_provider_is_called(provider: Provider, euro_tier: str) -> None:
    plans = charged_by("lago")
    euro = plans.plan(euro_tier).model_copy(update={"currency": "EUR"})
    plans = plans.model_copy(update={"plans": plans.plans | {euro_tier: euro}})
    with pytest.raises(RejectedError, match=f"plan {euro_tier} costs EUR, and the organization pays in USD") as caught:
        desired_at(provider, plans, None, currency="USD", pending_plan_tier="starter")
    assert caught.value.code == "plan_in_other_currency"


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_deleted_organization_wants_nothing_new_whatever_its_plan(provider: Provider) -> None:
    made = desired_at(provider, charged_by("lago"), plan_tier="gold", status="deleted")
    assert (made.active, made.plan_code) == (False, None)


def test_a_suspended_organization_is_billed_as_before() -> None:
    plans = charged_by("lago")
    assert desired_at("lago", plans, status="suspended") == desired_at("lago", plans)


@pytest.mark.parametrize(
    ("provider", "other"),
    [
        ("stripe", link("lago", payer_id="cus_1")),
        ("lago", link("stripe", subscription_id="sub_1")),
        ("lago", link("stripe", intent={"operation": "create_subscription"})),
    ],
)
def test_a_second_charger_is_refused_while_the_first_may_charge(provider: Provider, other: BillingLink) -> None:
    with pytest.raises(RejectedError) as caught:
        desired_at(provider, charged_by("stripe" if provider == "stripe" else "lago"), other)
    assert caught.value.code == "double_charging"
    assert caught.value.provider == provider
    assert "`billing-sync " in caught.value.message
    assert ("a subscription that is being created" in caught.value.message) == (other.intent is not None)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_downgrade_across_chargers_is_refused_with_the_way_out(provider: Provider) -> None:
    with pytest.raises(RejectedError, match="cancel it") as caught:
        desired_at(provider, charged_by("stripe", "professional"), pending_plan_tier="starter")
    assert caught.value.code == "charging_provider_would_change"


def test_the_digest_names_every_field_and_repeats_none() -> None:
    plans = charged_by("lago")
    desired = [
        desired_at("lago", plans),
        desired_at("lago", plans, name="Other"),
        desired_at("lago", plans, billing_email="a@b.test"),
        desired_at("lago", plans, currency="USD"),
        desired_at("lago", plans, link("stripe", customer_id="cus_1", customer_state="applied")),
        desired_at("lago", charged_by("stripe")),
    ]
    marks = [customer_fingerprint(each.customer) for each in desired]
    assert len(set(marks)) == len(marks)
    assert all(len(mark) <= 64 and "Acme" not in mark for mark in marks)
