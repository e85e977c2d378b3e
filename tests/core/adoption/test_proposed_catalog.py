"""What is sold becomes tiers that a newcomer can check, in a file that loads; what cannot be a tier is named."""

from __future__ import annotations

import tomllib
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.adoption.plans_in_use import PlansInUse, PriceInUse
from core.adoption.proposed_catalog import ProposedCatalog, ProposedTier, propose
from core.adoption.proposed_file import plans_file
from core.catalog import plans as plan_catalog
from core.catalog.plans import Catalog
from core.ports.inventory import Interval, InventoryPrice
from core.ports.spec import PROVIDERS, Provider

TODAY = date(2026, 11, 30)


def stripe(  # noqa: PLR0913 - the fields of a price that a test changes
    number: int,
    amount: int | None = 4900,
    *,
    key: str | None = None,
    name: str = "Professional",
    subscriptions: int = 1,
    active: bool = True,
    currency: str = "USD",
    interval: tuple[Interval | None, int] = ("month", 1),
    unusual: tuple[str, ...] = (),
) -> PriceInUse:
    price = InventoryPrice(
        id=f"price_{number}",
        code=key,
        name=name,
        amount=amount,
        currency=currency,
        interval=interval[0],
        interval_count=interval[1],
        active=active,
        unusual=unusual,
    )
    return PriceInUse(provider="stripe", price=price, subscriptions=subscriptions, charged=subscriptions)


def lago(  # noqa: PLR0913 - the fields of a plan that a test changes
    code: str,
    amount: int | None = 4900,
    *,
    name: str = "Professional",
    subscriptions: int = 1,
    charged: int | None = None,
    own_amounts: int = 0,
    currency: str = "USD",
    remarks: tuple[str, ...] = (),
) -> PriceInUse:
    price = InventoryPrice(
        id=code, code=code, name=name, amount=amount, currency=currency, interval="month", remarks=remarks
    )
    charged = subscriptions if charged is None else charged
    return PriceInUse(
        provider="lago", price=price, subscriptions=subscriptions, charged=charged, own_amounts=own_amounts
    )


def proposed(*prices: PriceInUse, several_items: dict[Provider, int] | None = None) -> ProposedCatalog:
    return propose(PlansInUse(prices=prices, several_items=several_items or {}))


def only(catalog: ProposedCatalog) -> ProposedTier:
    (tier,) = catalog.tiers
    return tier


def loaded(text: str) -> Catalog:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "plans.toml"
        file.write_text(text, encoding="utf-8")
        return plan_catalog.load(file)


def file_of(*prices: PriceInUse) -> tuple[Catalog, str]:
    """The catalog of the file, and the file without line breaks and comment signs."""
    text = plans_file(proposed(*prices), TODAY)
    return loaded(text), " ".join(text.replace("#", " ").split())


def test_the_ending_is_the_packaged_one() -> None:
    catalog, _ = file_of(lago("pro"))
    assert catalog.ending == plan_catalog.load(plan_catalog.DEFAULT_PLANS_FILE).ending


@pytest.mark.parametrize("key", ["pro", "pro_monthly_usd"])
def test_a_code_says_that_two_are_one_tier(key: str) -> None:
    tier = only(proposed(lago("pro"), stripe(1, key=key)))
    assert (tier.tier, tier.matched_by, tier.codes) == ("pro", "code", {"lago": "pro", "stripe": key})


def test_a_code_in_another_currency_says_nothing() -> None:
    catalog = proposed(lago("pro"), stripe(1, key="pro", currency="EUR"))
    assert [(each.tier, each.matched_by) for each in catalog.tiers] == [("pro", None), ("pro_monthly_usd", None)]


def test_two_that_alone_cost_the_same_are_one_tier_and_the_file_says_so() -> None:
    catalog, text = file_of(lago("team"), stripe(1, key="gold"), stripe(2, 9900, key="platinum"))
    assert catalog.tiers() == ["team", "platinum"]
    assert catalog.plan("team").stripe_lookup_key == "gold"
    assert "were matched because they cost the same" in text


def test_of_several_that_cost_the_same_none_is_chosen() -> None:
    catalog = proposed(lago("team"), stripe(1, key="gold"), stripe(2, key="silver"))
    assert [(each.tier, each.matched_by, each.same_terms) for each in catalog.tiers] == [
        ("gold", None, 1),
        ("silver", None, 1),
        ("team", None, 2),
    ]


def test_an_archived_price_is_matched_by_its_code_only() -> None:
    assert len(proposed(lago("team"), stripe(1, key="old", active=False)).tiers) == 2
    assert only(proposed(lago("team"), stripe(1, key="team", active=False))).matched_by == "code"


def test_a_price_that_nobody_has_completes_a_tier_and_is_none_itself() -> None:
    catalog = proposed(lago("pro"), stripe(1, key="pro", subscriptions=0), stripe(2, 9900, key="x", subscriptions=0))
    assert only(catalog).codes == {"lago": "pro", "stripe": "pro"}
    assert [each.price.id for each in catalog.unused] == ["price_2"]


def test_before_the_first_subscription_all_that_is_on_sale_is_a_tier() -> None:
    catalog = proposed(lago("pro", subscriptions=0), stripe(1, 9900, key="x", subscriptions=0))
    assert [each.tier for each in catalog.tiers] == ["pro", "x"]
    assert catalog.unused == []


@pytest.mark.parametrize(
    ("in_stripe", "in_lago", "with_payer", "charged_by"),
    [(5, 5, 0, "stripe"), (1, 9, 9, "lago"), (9, 9, 1, "stripe"), (0, 5, 5, "lago"), (0, 5, 0, "lago")],
)
def test_who_charges_most_charges_for_the_tier(
    in_stripe: int, in_lago: int, with_payer: int, charged_by: Provider
) -> None:
    found = lago("pro", subscriptions=in_lago, charged=with_payer), stripe(1, key="pro", subscriptions=in_stripe)
    assert only(proposed(*found)).charged_by == charged_by
    assert file_of(*found)[0].plan("pro").charged_by == charged_by


def test_the_amount_is_of_the_one_that_charges_and_a_difference_is_said() -> None:
    catalog, text = file_of(lago("pro", 3900, charged=0), stripe(1, 4900, key="pro"))
    assert catalog.plan("pro").amount == 4900
    assert "They differ: 39.00 USD in Lago, 49.00 USD in Stripe." in text


def test_both_charging_and_nobody_charging_are_said() -> None:
    assert "Stripe charges 2 and Lago charges 1." in file_of(lago("pro"), stripe(1, key="pro", subscriptions=2))[1]
    assert "None of its customers has a payer in Lago" in file_of(lago("pro", charged=0))[1]
    assert "In Lago, 2 pay an amount of their own." in file_of(lago("pro", subscriptions=3, own_amounts=2))[1]


def test_a_price_without_a_lookup_key_gets_a_new_one_and_the_command_that_sets_it() -> None:
    catalog, text = file_of(stripe(1), stripe(2, 100, key="professional_monthly_usd", name="Other"))
    key = catalog.plan("professional_monthly_usd_2" if "professional" not in catalog.plans else "professional")
    assert key.stripe_lookup_key == "professional_monthly_usd_2"
    assert "stripe prices update price_1 --lookup-key=professional_monthly_usd_2" in text


def test_archived_prices_of_a_product_are_its_former_codes() -> None:
    catalog, text = file_of(stripe(1, key="pro"), stripe(2, 3900, key="pro_2022", active=False))
    assert catalog.plan("pro").former_codes.stripe == ["pro_2022"]
    assert "price_2 (lookup key pro_2022), 1 subscription, 39.00 USD monthly." in text


def test_an_archived_price_without_lookup_key_is_no_code_and_is_named_with_its_customers() -> None:
    catalog, text = file_of(stripe(1, key="pro"), stripe(2, 3900, active=False, subscriptions=7))
    assert catalog.plan("pro").former_codes.stripe == []
    assert "Stripe: price_2, 7 subscriptions, 39.00 USD monthly. It has no lookup key, so it is no code." in text
    alone = proposed(stripe(1, key="pro"), stripe(2, 3900, active=False, name="Classic"))
    assert [each.reasons for each in alone.left_out] == [("it is archived", "it has no lookup key")]
    assert "Give each a lookup key in Stripe" in plans_file(alone, TODAY)


def test_an_archived_price_whose_product_is_sold_no_longer_is_a_tier_that_is_not_offered() -> None:
    catalog, _ = file_of(stripe(1, key="pro"), stripe(2, 3900, key="classic", active=False, name="Classic"))
    assert (catalog.tiers(), catalog.offered_tiers()) == (["classic", "pro"], ["pro"])


def test_where_a_product_has_two_prices_on_sale_an_archived_one_is_of_neither() -> None:
    catalog, text = file_of(
        stripe(1, key="pro"), stripe(2, 5900, key="pro_new"), stripe(3, 3900, key="pro_old", active=False)
    )
    assert catalog.offered_tiers() == ["pro", "pro_new"]
    assert not catalog.plan("pro_old").offered
    assert "plans.pro_new has the same name." in text


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (stripe(1, None, key="a", unusual=("it is metered",)), "it is metered"),
        (stripe(1, None, key="a"), "it has no flat amount"),
        (stripe(1, -5, key="a"), "its amount is below zero"),
        (stripe(1, key="a", interval=("day", 1)), "it is for 1 days, and a plan is for a week"),
        (stripe(1, key="a", interval=("week", 2)), "it is for 2 weeks, and a plan is for a week"),
        (stripe(1, key="a.b"), "its lookup key has other characters"),
        (lago("a.b"), "its code has other characters"),
        (stripe(1, key="a", currency="XX"), "its currency is no ISO code"),
    ],
)
def test_what_cannot_be_a_tier_is_named_with_its_reason_and_how_many_are_on_it(found: PriceInUse, reason: str) -> None:
    catalog = proposed(lago("pro"), found)
    assert only(catalog).tier == "pro"
    text = " ".join(plans_file(catalog, TODAY).replace("#", " ").split())
    assert f"{reason[0].upper()}{reason[1:]}" in text
    assert f"{found.price.id}" in text.split("cannot be a tier")[1]
    assert ", 1 subscription" in text.split("cannot be a tier")[1]


def test_several_items_and_usage_are_named() -> None:
    catalog = proposed(lago("pro", remarks=("it bills usage, too: calls",)), several_items={"stripe": 4})
    text = plans_file(catalog, TODAY)
    assert "Beside its amount: it bills usage, too: calls." in text
    assert "Stripe: 4 subscriptions have several prices, and a tier has one." in text


def test_a_lookup_key_that_moved_while_the_prices_were_listed_is_used_once() -> None:
    catalog = proposed(stripe(1, key="pro"), stripe(2, 3900, key="pro", active=False))
    assert only(catalog).former == []
    assert catalog.left_out[0].reasons == ("another price got its lookup key while the prices were listed",)


def test_tiers_are_ordered_by_what_a_year_costs_and_the_main_currency_is_first() -> None:
    catalog, _ = file_of(
        stripe(1, 50000, key="yearly", interval=("year", 1)),
        stripe(2, 4900, key="monthly"),
        stripe(3, 100, key="euro", currency="EUR", name="Euro"),
        stripe(4, 90000, key="half", interval=("month", 6)),
    )
    assert catalog.tiers() == ["yearly", "monthly", "half", "euro"]
    assert catalog.conflicts() == []


def test_nothing_on_sale_is_not_usable() -> None:
    assert not proposed().is_usable
    assert not proposed(stripe(1, None)).is_usable
    assert not proposed(stripe(1, key="old", active=False)).is_usable


codes = st.one_of(
    st.none(),
    st.sampled_from(["pro", "pro_monthly_usd", "a.b", "", "PRO", "é"]),
    st.text(max_size=30),
    st.just("x" * 210),
)
prices = st.builds(
    InventoryPrice,
    id=st.text(min_size=1, max_size=20),
    code=codes,
    name=st.one_of(st.sampled_from(["Pro", "", 'a"b\\', "two\nlines", "\x7f\x00\u202e"]), st.text(max_size=300)),
    amount=st.one_of(st.none(), st.sampled_from([0, 1900, 4900]), st.integers(-5, 2**70)),
    currency=st.sampled_from(["USD", "EUR", "JPY", "MRU", "", "usd", "€€€"]),
    interval=st.sampled_from([None, "day", "week", "month", "year"]),
    interval_count=st.sampled_from([1, 2, 3, 6, 12]),
    active=st.booleans(),
    unusual=st.lists(st.text(max_size=40), max_size=2).map(tuple),
    remarks=st.lists(st.text(max_size=40), max_size=2).map(tuple),
)


@st.composite
def accounts(draw: st.DrawFn) -> PlansInUse:
    """Any two accounts. The id of a plan of Lago is its code; a price of Stripe has an id of its own."""
    found = []
    for provider in PROVIDERS:
        drawn = draw(st.lists(prices, max_size=8))
        by_id = {(each.id if provider == "stripe" else each.code or "none"): each for each in drawn}
        for price_id, each in by_id.items():
            subscriptions = draw(st.integers(0, 3))
            price = InventoryPrice(**{name: getattr(each, name) for name in each.__slots__} | {"id": price_id})
            found.append(
                PriceInUse(
                    provider=provider,
                    price=price,
                    subscriptions=subscriptions,
                    charged=draw(st.integers(0, subscriptions)),
                    own_amounts=draw(st.integers(0, subscriptions)),
                )
            )
    return PlansInUse(prices=tuple(found), several_items=draw(st.dictionaries(st.just("stripe"), st.integers(1, 9))))


@settings(max_examples=300, deadline=None)
@given(accounts())
def test_whatever_two_accounts_have_the_file_loads_and_loses_nobody(found: PlansInUse) -> None:
    catalog = propose(found)
    placed = [
        *(price for tier in catalog.tiers for price in (*tier.sold.values(), *tier.former, *tier.former_without_code)),
        *(each.found for each in catalog.left_out),
        *catalog.unused,
    ]
    assert len(placed) == len({(each.provider, each.price.id) for each in placed})
    lost = {(each.provider, each.price.id) for each in found.prices if each.subscriptions}
    assert lost <= {(each.provider, each.price.id) for each in placed}
    if not catalog.is_usable:
        return
    text = plans_file(catalog, TODAY)
    assert all(line.startswith("#") or "\t" not in line for line in text.splitlines())
    read = loaded(text)
    assert read.tiers() == [each.tier for each in catalog.tiers]
    for tier in catalog.tiers:
        plan = read.plan(tier.tier)
        assert (plan.amount, plan.currency, plan.interval) == (
            tier.terms.amount,
            tier.terms.currency,
            tier.terms.interval,
        )
        assert (plan.charged_by, plan.offered) == (tier.charged_by, tier.offered)
    assert tomllib.loads(text)


def test_tiers_that_cost_the_same_a_year_are_named_as_the_check_names_them() -> None:
    catalog, text = file_of(lago("starter", 1900), lago("starter_with_calls", 1900), lago("pro", 4900))
    assert [each.split(":")[0] for each in catalog.conflicts()] == [
        "plans.starter_with_calls costs the same per year as plans.starter"
    ]
    assert text.count("It costs the same per year as plans.starter, so Lago would apply a downgrade") == 1
    assert text.count("It costs the same per year") == 1
