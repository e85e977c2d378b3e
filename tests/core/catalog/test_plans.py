"""The plan file: what ships is the guide's, a new tier is one more table, and a bad file is told in one sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from core.catalog.plans import DEFAULT_PLANS_FILE, Catalog, CatalogError, ChargingProvider, UnknownPlanError, load

SHIPPED = DEFAULT_PLANS_FILE.read_text()
ONE_MORE = """
[plans.galactic]
rank = 4
name = "Galactic"
amount = 99900
currency = "USD"
interval = "monthly"
lago_plan_code = "galactic"
stripe_lookup_key = "galactic_monthly_usd"
"""
HIGHER_RANK_COSTS_LESS = (
    "plans.professional ranks above plans.starter but costs less per year ({high} < {low}): "
    "Lago would treat the upgrade as a downgrade"
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "plans.toml"


def _line(text: str, wanted: str, after: str = "") -> int:
    start = text.index(after)
    return text.count("\n", 0, text.index(wanted, start)) + 1


def _problem(file: Path, text: str, setting: ChargingProvider | None = None) -> str:
    file.write_text(text)
    with pytest.raises(CatalogError) as caught:
        load(file, setting)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def _in_starter(old: str, new: str) -> str:
    before, after = SHIPPED.split("[plans.starter]")
    assert old in after
    return f"{before}[plans.starter]{after.replace(old, new, 1)}"


def _changed(file: Path, old: str, new: str) -> Catalog:
    file.write_text(_in_starter(old, new))
    return load(file)


def test_the_shipped_file_holds_the_guides_four_tiers_lowest_first(plans: Catalog) -> None:
    assert plans.tiers() == ["founders_friend", "starter", "professional", "enterprise"]
    assert [plans.plan(tier).amount for tier in plans.tiers()] == [0, 1900, 4900, 9900]
    assert {plan.currency for plan in plans.plans.values()} == {"USD"}
    assert {plan.interval for plan in plans.plans.values()} == {"monthly"}
    assert plans.conflicts() == []


def test_a_tier_that_is_not_in_the_file_is_unknown_and_never_free(plans: Catalog) -> None:
    with pytest.raises(UnknownPlanError, match="platinum"):
        plans.plan("platinum")


def test_a_billers_code_leads_back_to_its_tier(plans: Catalog) -> None:
    assert plans.tier_of("lago", "starter") == "starter"
    assert plans.tier_of("stripe", "starter_monthly_usd") == "starter"
    assert plans.tier_of("stripe", "starter") is None
    assert plans.tier_of("lago", "starter_monthly_usd") is None


FORMER = 'former_codes = { lago = ["starter_2024"], stripe = ["starter_2024_usd", "starter_2025_usd"] }\n'


def _former(field: str, codes: str = FORMER) -> str:
    """The codes below the field of starter."""
    before, after = SHIPPED.split("[plans.starter]")
    line = next(each for each in after.splitlines(keepends=True) if each.startswith(field))
    return f"{before}[plans.starter]{after.replace(line, line + codes, 1)}"


def test_a_former_code_leads_to_the_tier_that_was_sold_under_it(file: Path) -> None:
    file.write_text(_former("stripe_lookup_key"))
    plans = load(file)
    assert plans.tier_of("stripe", "starter_2025_usd") == "starter"
    assert plans.tier_of("lago", "starter_2024") == "starter"
    assert plans.tier_of("lago", "starter_2024_usd") is None
    assert plans.plan("starter").code("stripe") == "starter_monthly_usd"


@pytest.mark.parametrize(
    ("codes", "problem"),
    [
        (
            'former_codes.lago = ["starter"]\n',
            "plans.starter.former_codes is 'starter', which plans.starter already uses",
        ),
        (
            'former_codes = { stripe = ["old", "old"] }\n',
            "plans.starter.former_codes is 'old', which plans.starter already uses",
        ),
        (
            'former_codes.stripe = ["founders_friend_monthly_usd"]\n',
            "plans.starter.former_codes is 'founders_friend_monthly_usd', which plans.founders_friend already uses",
        ),
        ('former_codes = { lago = ["a b"] }\n', "plans.starter.former_codes.lago.0: String should match pattern"),
        ('former_codes = ["starter_2024"]\n', "plans.starter.former_codes: Input should be a valid dictionary"),
    ],
)
def test_a_former_code_that_is_not_one_plans_own_is_refused_at_its_line(file: Path, codes: str, problem: str) -> None:
    text = _former("stripe_lookup_key", codes)
    sentence = _problem(file, text)
    assert problem in sentence
    assert f" line {_line(text, 'former_codes')}:" in sentence


def test_a_former_code_that_is_the_code_of_another_plan_is_refused(file: Path) -> None:
    text = _former("stripe_lookup_key", 'former_codes.lago = ["enterprise"]\n')
    sentence = _problem(file, text)
    assert "plans.enterprise.lago_plan_code is 'enterprise', which plans.starter already uses" in sentence


def _with_usage_plan(code: str = "starter_usage", more: str = "") -> str:
    return _former("lago_plan_code", f'lago_usage_plan_code = "{code}"\n{more}')


def test_where_stripe_charges_the_plan_of_amount_0_is_the_one_that_lago_sells(file: Path) -> None:
    file.write_text(_with_usage_plan(more='former_codes.lago_usage = ["starter_usage_2024"]\n'))
    plan = load(file, "stripe").plan("starter")
    assert (plan.code("lago"), plan.former("lago")) == ("starter_usage", ["starter", "starter_usage_2024"])
    assert [plan.yearly_amount_in_lago(code) for code in ("starter", "starter_usage", "starter_usage_2024")] == [
        *(12 * 1900, 0, 0)
    ]
    assert load(file, "stripe").tier_of("lago", "starter_usage_2024") == "starter"
    assert load(file, "stripe").tier_of("stripe", "starter_usage") is None


def test_where_lago_charges_nobody_stays_on_a_plan_of_amount_0(file: Path) -> None:
    file.write_text(_with_usage_plan(more='former_codes.lago_usage = ["starter_usage_2024"]\n'))
    catalog = load(file, "lago")
    plan = catalog.plan("starter")
    assert (plan.code("lago"), plan.former("lago")) == ("starter", [])
    assert {catalog.tier_of("lago", code) for code in ("starter_usage", "starter_usage_2024")} == {"starter"}
    assert not any(plan.may_keep_code("lago", code) for code in ("starter_usage", "starter_usage_2024"))


@pytest.mark.parametrize(
    ("code", "more", "problem"),
    [
        ("starter", "", "plans.starter.lago_usage_plan_code is 'starter', which plans.starter already uses"),
        ("enterprise", "", "plans.enterprise.lago_plan_code is 'enterprise', which plans.starter already uses"),
        ("a b", "", "plans.starter.lago_usage_plan_code: String should match pattern"),
        (
            "starter_usage",
            'former_codes.lago_usage = ["starter_usage"]\n',
            "plans.starter.former_codes is 'starter_usage', which plans.starter already uses",
        ),
    ],
)
def test_a_plan_of_amount_0_has_a_code_of_its_own(file: Path, code: str, more: str, problem: str) -> None:
    assert problem in _problem(file, _with_usage_plan(code, more))


def test_a_plan_of_amount_0_is_recommended_once_where_stripe_charges(file: Path) -> None:
    file.write_text(_with_usage_plan())
    assert load(file, "lago").recommendations() == []
    (sentence,) = load(file, "stripe").recommendations()
    assert sentence.startswith("Stripe charges for professional, enterprise, and Lago makes invoices")


def test_one_more_table_is_one_more_tier(file: Path) -> None:
    file.write_text(SHIPPED + ONE_MORE)
    catalog = load(file)
    assert catalog.tiers()[-1] == "galactic"
    assert catalog.plan("galactic").amount == 99900
    assert catalog.tier_of("lago", "galactic") == "galactic"


def test_rank_orders_the_tiers_wherever_they_stand(file: Path) -> None:
    tables = SHIPPED.split("[plans.starter]")
    file.write_text(f"{tables[0]}{ONE_MORE}\n[plans.starter]{tables[1]}")
    assert load(file).tiers() == ["founders_friend", "starter", "professional", "enterprise", "galactic"]


def test_who_charges_is_the_files_word_unless_the_setting_says_otherwise() -> None:
    assert {plan.charged_by for plan in load().plans.values()} == {"lago"}
    assert {plan.charged_by for plan in load(charged_by="stripe").plans.values()} == {"stripe"}


def test_a_plan_that_names_who_charges_keeps_its_word(file: Path) -> None:
    file.write_text(_in_starter("rank = 1", 'rank = 1\ncharged_by = "stripe"'))
    catalog = load(file, charged_by="lago")
    assert {tier: catalog.plan(tier).charged_by for tier in catalog.tiers()} == {
        "founders_friend": "lago",
        "starter": "stripe",
        "professional": "lago",
        "enterprise": "lago",
    }


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("amount = 1900", "amount = 19.00", "amount"),
        ("amount = 1900", 'amount = "1900"', "amount"),
        ("amount = 1900", "amount = -1", "amount"),
        ("rank = 1", "rank = true", "rank"),
        ("rank = 1", "rank = -1", "rank"),
        ('name = "Starter"', 'name = ""', "name"),
        ('currency = "USD"', 'currency = "usd"', "currency"),
        ('currency = "USD"', 'currency = "dollars"', "currency"),
        ('interval = "monthly"', 'interval = "daily"', "interval"),
        ('lago_plan_code = "starter"', 'lago_plan_code = "the starter"', "lago_plan_code"),
        ("rank = 1", 'rank = 1\ncharged_by = "paypal"', "charged_by"),
        ("rank = 1", 'rank = 1\ncolour = "red"', "colour"),
    ],
)
def test_a_bad_value_is_told_with_file_line_and_field(file: Path, old: str, new: str, field: str) -> None:
    text = _in_starter(old, new)
    line = _line(text, new.splitlines()[-1], after="[plans.starter]")
    assert _problem(file, text).startswith(f"{file} line {line}: plans.starter.{field}: ")


@pytest.mark.parametrize("field", ["rank", "name", "amount", "currency", "interval", "lago_plan_code"])
def test_a_missing_field_is_told_with_the_line_of_its_table(file: Path, field: str) -> None:
    before, after = SHIPPED.split("[plans.starter]")
    text = f"{before}[plans.starter]{re.sub(rf'{field} = .*', '', after, count=1)}"
    line = _line(text, "[plans.starter]")
    assert _problem(file, text) == f"{file} line {line}: plans.starter.{field}: Field required"


@pytest.mark.parametrize(
    ("old", "new", "field", "other"),
    [
        ("rank = 1", "rank = 0", "rank", "founders_friend"),
        ('lago_plan_code = "starter"', 'lago_plan_code = "founders_friend"', "lago_plan_code", "founders_friend"),
        (
            'stripe_lookup_key = "starter_monthly_usd"',
            'stripe_lookup_key = "founders_friend_monthly_usd"',
            "stripe_lookup_key",
            "founders_friend",
        ),
    ],
)
def test_what_may_stand_once_is_told_with_both_places(file: Path, old: str, new: str, field: str, other: str) -> None:
    text = _in_starter(old, new)
    sentence = _problem(file, text)
    assert sentence.startswith(f"{file} line {_line(text, new, after='[plans.starter]')}: plans.starter.{field}")
    assert sentence.endswith(f"which plans.{other} already uses")


def test_an_unknown_key_beside_the_tables_is_refused(file: Path) -> None:
    assert _problem(file, f'charge_by = "stripe"\n{SHIPPED}').startswith(f"{file} line 1: charge_by: ")


@pytest.mark.parametrize("setting", [None, "stripe"])
def test_a_word_for_who_charges_that_is_none_is_told_where_it_stands(
    file: Path, setting: ChargingProvider | None
) -> None:
    """Whatever the setting says: it would come into force on the day the setting is lost."""
    text = SHIPPED.replace('charged_by = "lago"', 'charged_by = "paypal"', 1)
    line = _line(text, "charged_by")
    assert _problem(file, text, setting) == (
        f"{file} line {line}: charged_by: Input should be 'lago' or 'stripe' (got 'paypal')"
    )


def test_a_file_that_does_not_say_who_charges_is_refused(file: Path) -> None:
    text = SHIPPED.replace('charged_by = "lago"', "", 1)
    line = _line(text, "[plans.founders_friend]")
    assert _problem(file, text) == f"{file} line {line}: plans.founders_friend.charged_by: Field required"


@pytest.mark.parametrize("tier", ["starter", "gold"])
def test_a_table_is_named_by_its_header_alone(file: Path, tier: str) -> None:
    text = _in_starter("rank = 1", f'rank = 1\ntier = "{tier}"')
    line = _line(text, "tier =", after="[plans.starter]")
    assert _problem(file, text).startswith(f"{file} line {line}: plans.starter.tier: ")


def test_how_a_subscription_ends_is_never_left_to_a_default(file: Path) -> None:
    text = re.sub(r"lago_credit_note = .*", "", SHIPPED, count=1)
    line = _line(text, "[ending]")
    assert _problem(file, text) == f"{file} line {line}: ending.lago_credit_note: Field required"


def test_a_file_without_plans_is_refused(file: Path) -> None:
    assert "plans: Field required" in _problem(file, SHIPPED.split("[plans.founders_friend]")[0])


def test_bad_toml_is_told_with_its_line(file: Path) -> None:
    text = _in_starter("rank = 1", "rank = ")
    line = _line(text, "rank = \n", after="[plans.starter]")
    sentence = _problem(file, text)
    assert sentence.startswith(f"{file}: not valid TOML: ")
    assert f"at line {line}," in sentence


def test_a_file_that_is_not_there_is_told_with_the_way_out(file: Path) -> None:
    with pytest.raises(CatalogError, match="plan file not found; set PLANS_FILE") as caught:
        load(file)
    assert str(file) in str(caught.value)


def test_a_file_that_cannot_be_read_is_told(file: Path, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="cannot be read"):
        load(tmp_path)
    file.write_bytes(b'name = "\xff"')
    with pytest.raises(CatalogError, match=r"plans\.toml: is not UTF-8 text: save it as UTF-8"):
        load(file)


def test_a_file_of_windows_is_read_and_one_in_utf_16_is_refused(file: Path) -> None:
    text = DEFAULT_PLANS_FILE.read_text("utf-8").replace("\n", "\r\n")
    file.write_bytes(("\ufeff" + text).encode())
    assert load(file) == load(DEFAULT_PLANS_FILE)
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        file.write_bytes(text.encode(encoding))
        with pytest.raises(CatalogError, match=r"plans\.toml: is not UTF-8 text: save it as UTF-8"):
            load(file)


def test_a_higher_rank_that_costs_less_a_year_is_a_disagreement(file: Path) -> None:
    found = _changed(file, "amount = 1900", "amount = 5000").conflicts()
    assert found == [HIGHER_RANK_COSTS_LESS.format(high=58800, low=60000)]


def test_a_year_is_what_is_compared_not_an_interval(file: Path) -> None:
    assert _changed(file, 'interval = "monthly"', 'interval = "yearly"').conflicts() == []
    found = _changed(file, 'interval = "monthly"', 'interval = "weekly"').conflicts()
    assert found == [HIGHER_RANK_COSTS_LESS.format(high=58800, low=98800)]


def test_the_same_price_a_year_is_a_disagreement(file: Path) -> None:
    assert _changed(file, "amount = 1900", "amount = 0").conflicts() == [
        "plans.starter costs the same per year as plans.founders_friend: Lago would apply the downgrade immediately"
    ]


def _not_offered(*tiers: str) -> str:
    """The shipped file with these plans sold no longer."""
    text = SHIPPED
    for tier in tiers:
        text = text.replace(f"[plans.{tier}]", f"[plans.{tier}]\noffered = false")
    return text


def test_a_plan_that_is_sold_no_longer_stays_a_tier_and_is_not_offered(file: Path) -> None:
    file.write_text(_not_offered("starter"))
    plans = load(file)
    assert plans.tiers() == ["founders_friend", "starter", "professional", "enterprise"]
    assert plans.offered_tiers() == ["founders_friend", "professional", "enterprise"]


def test_a_catalog_that_offers_nothing_is_refused(file: Path) -> None:
    problem = _problem(file, _not_offered("founders_friend", "starter", "professional", "enterprise"))
    assert problem == (
        f"{file} line 1: plans: no plan is offered; remove `offered = false` from one that new organizations may have"
    )


def test_plans_in_different_currencies_are_not_compared(file: Path) -> None:
    assert _changed(file, 'amount = 1900\ncurrency = "USD"', 'amount = 990000\ncurrency = "JPY"').conflicts() == []
