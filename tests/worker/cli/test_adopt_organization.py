"""``adopt ORG`` as an operator types it: what is there is shown, and adopted as the operator chooses."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from core.adoption.table import write_table
from core.catalog.plans import DEFAULT_PLANS_FILE
from core.ports.spec import PROVIDERS
from sandbox.server import Sandbox
from tests.support.adoption_harness import AdoptionHarness
from tests.support.sync_world import SyncWorld
from worker.cli.app import app as commands
from worker.cli.exit_codes import CommandFailedError, UsageError

Type = Callable[..., Result]


@pytest.fixture
def theirs(world: SyncWorld, sandbox_server: Sandbox) -> Iterator[AdoptionHarness]:
    harness = AdoptionHarness(world=world, url=sandbox_server.url)
    yield harness
    harness.close()


@pytest.fixture
def types(theirs: AdoptionHarness, tmp_path: Path) -> Type:
    environment = theirs.environment(tmp_path, DEFAULT_PLANS_FILE)
    return lambda *words: CliRunner().invoke(commands, list(words), env=environment)


@pytest.fixture
def types_that_observe(theirs: AdoptionHarness, tmp_path: Path) -> Type:
    environment = {**theirs.environment(tmp_path, DEFAULT_PLANS_FILE), "MANAGEMENT": "observe"}
    return lambda *words: CliRunner().invoke(commands, list(words), env=environment)


@pytest.fixture
def types_with_former_ones(theirs: AdoptionHarness, tmp_path: Path) -> Type:
    """The plan enterprise is sold no longer, and professional had another code in Stripe."""
    text = DEFAULT_PLANS_FILE.read_text(encoding="utf-8")
    for plan, line in (
        ("enterprise", "offered = false"),
        ("professional", 'former_codes = { stripe = ["professional_2024"] }'),
    ):
        text = text.replace(f"[plans.{plan}]\n", f"[plans.{plan}]\n{line}\n")
    (tmp_path / "plans.toml").write_text(text, encoding="utf-8")
    environment = theirs.environment(tmp_path, tmp_path / "plans.toml")
    return lambda *words: CliRunner().invoke(commands, list(words), env=environment)


@pytest.fixture
def org_id(theirs: AdoptionHarness) -> str:
    """It has customers at both providers, and only an operator knows which."""
    theirs.lago_customer(plan="professional", payer=theirs.stripe_customer())
    return theirs.world.create("Acme", "professional")


def words_of(result: Result) -> str:
    return " ".join(result.stdout.split())


def ownerships(theirs: AdoptionHarness, org_id: str) -> list[str]:
    return [theirs.world.link(org_id, provider).ownership for provider in PROVIDERS]


def test_given_customers_are_shown_and_adopted(theirs: AdoptionHarness, types: Type, org_id: str) -> None:
    adopted = types("adopt", org_id, "--lago", "acme")
    assert adopted.exit_code == 0, adopted.output
    for text in (
        "Stripe: customer cus_theirs, Acme at Stripe",
        "49.00 USD a month on professional",
        "→ adopt: it is at",
    ):
        assert text in words_of(adopted)
    assert "Adopted. It is managed, so our metadata in Stripe" in words_of(adopted)
    assert max(map(len, adopted.stdout.splitlines())) <= 80
    assert ownerships(theirs, org_id) == ["adopted", "adopted"]
    assert theirs.world.link(org_id, "lago").external_subscription_id == "contract"
    assert "It was adopted before. Nothing was changed." in types("adopt", org_id).stdout
    assert theirs.writes() == []


def test_an_unknown_customer_is_asked_for(types: Type, org_id: str) -> None:
    unknown = types("adopt", org_id)
    assert isinstance(unknown.exception, CommandFailedError)
    assert "name it with --stripe cus_…, or with --lago and its external id" in str(unknown.exception)
    wrong = types("adopt", org_id, "--lago", "nobody")
    assert "Lago has no customer with the external id nobody: correct --lago" in str(wrong.exception)


def test_ids_that_an_import_brought_are_known(theirs: AdoptionHarness, types: Type, org_id: str) -> None:
    theirs.world.set_customer_id(org_id, "stripe", "cus_theirs")
    theirs.world.set_customer_id(org_id, "lago", "acme")
    assert types("adopt", "Acme").exit_code == 0
    lago = theirs.world.link(org_id, "lago")
    assert (lago.ownership, lago.external_customer_id) == ("adopted", "acme")
    assert lago.customer_id != "acme"


def test_a_charge_that_begins_is_confirmed(theirs: AdoptionHarness, types: Type) -> None:
    theirs.lago_customer(payer=theirs.stripe_customer())
    org_id = theirs.world.create("Acme", "professional")
    theirs.world.sandbox.reset_calls()
    refused = types("adopt", org_id, "--lago", "acme")
    assert isinstance(refused.exception, UsageError)
    assert "1 new subscription will begin to charge once managed, before discounts:" in words_of(refused)
    assert "49.00 USD monthly, charged by Lago In all 49.00 USD monthly" in words_of(refused)
    assert ownerships(theirs, org_id) == ["ours", "ours"]
    assert types("adopt", org_id, "--lago", "acme", "--yes").exit_code == 0
    assert ownerships(theirs, org_id) == ["adopted", "adopted"]
    assert "It was adopted before" in types("adopt", org_id).stdout


def test_a_customer_that_lago_may_charge_under_an_unknown_id_is_not_adopted_without_it(
    theirs: AdoptionHarness, types: Type, org_id: str
) -> None:
    theirs.world.sandbox.reset_calls()
    refused = types("adopt", org_id, "--stripe", "cus_theirs", "--yes")
    assert isinstance(refused.exception, CommandFailedError)
    message = str(refused.exception)
    assert "may charge cus_theirs under an external id that is not known" in message
    assert "name its customer with --lago EXTERNAL_ID, or run `billing-sync adopt discover`" in message
    assert ownerships(theirs, org_id) == ["ours", "ours"]
    assert types("adopt", org_id, "--stripe", "cus_theirs", "--lago", "acme").exit_code == 0


def test_where_there_is_a_choice_both_commands_are_said(theirs: AdoptionHarness, types: Type, org_id: str) -> None:
    theirs.world.sandbox.patch("lago", "subscriptions", "contract", plan_overrides={"amount_cents": 4000})
    theirs.world.sandbox.reset_calls()
    choice = types("adopt", org_id, "--lago", "acme")
    assert isinstance(choice.exception, UsageError)
    message = str(choice.exception)
    assert "it pays 40.00 USD a month on professional, and professional costs 49.00 USD a month" in message
    for option in ("--keep-price", "--to-catalog"):
        assert f"`billing-sync adopt {org_id} {option} --lago acme`" in message
    refused = types("adopt", org_id, "--lago", "acme", "--to-catalog", "--yes")
    assert "Lago cannot change a price of its own" in str(refused.exception)
    assert ownerships(theirs, org_id) == ["ours", "ours"]
    assert types("adopt", org_id, "--lago", "acme", "--keep-price").exit_code == 0
    assert theirs.world.link(org_id, "lago").sold_price_id == "4000"
    assert theirs.writes() == []


def test_another_plan_is_a_conflict_with_both_amounts(theirs: AdoptionHarness, types: Type, org_id: str) -> None:
    theirs.world.sandbox.patch("lago", "subscriptions", "contract", plan_code="enterprise")
    theirs.world.sandbox.reset_calls()
    conflict = types("adopt", org_id, "--lago", "acme", "--keep-price")
    assert isinstance(conflict.exception, CommandFailedError)
    message = str(conflict.exception)
    assert "99.00 USD a month" in message
    assert "then run this command again" in message
    assert "→ conflict" not in conflict.stdout
    assert "49.00 USD a month" in message
    assert ownerships(theirs, org_id) == ["ours", "ours"]
    assert theirs.writes() == []


def test_one_that_keeps_its_price_says_so_and_lago_changes_none_within_a_plan(
    theirs: AdoptionHarness, types: Type, org_id: str
) -> None:
    theirs.world.sandbox.patch("lago", "subscriptions", "contract", plan_overrides={"amount_cents": 4000})
    assert types("adopt", org_id, "--lago", "acme", "--keep-price").exit_code == 0
    for options in ((), ("--keep-price",), ("--to-catalog",)):
        again = types("adopt", org_id, *options)
        assert again.exit_code == 0, again.output
        assert (
            "It was adopted before. Nothing was changed. It keeps its price: it pays 40.00 USD a month on "
            "professional, and professional costs 49.00 USD a month. No command changes it to the catalog's"
        ) in words_of(again)
        assert "→" not in again.stdout


def at_a_former_price(theirs: AdoptionHarness, code: str) -> None:
    """Stripe charges it 40.00 USD. The plan costs 49.00."""
    sandbox = theirs.world.sandbox
    price = {
        "product": sandbox.create("stripe", "products", name="Old")["id"],
        "lookup_key": code,
        "unit_amount": 4000,
        "currency": "usd",
        "recurring": {"interval": "month"},
    }
    sandbox.preload_stripe_subscription(theirs.stripe_customer(), str(sandbox.preload_stripe_prices([price])[0]["id"]))


def test_one_that_was_adopted_says_which_commands_change_what_it_pays_and_they_do(
    theirs: AdoptionHarness, types_with_former_ones: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    types = types_with_former_ones
    monkeypatch.setenv("CHARGED_BY", "stripe")
    theirs.world.set_charging_provider("stripe")
    org_id = theirs.world.create("Acme", "professional")
    at_a_former_price(theirs, "professional_2024")
    theirs.world.sandbox.reset_calls()
    assert types("adopt", org_id, "--stripe", "cus_theirs", "--keep-price").exit_code == 0
    pays = "it pays 40.00 USD a month on price_"
    for option, text in (
        ("--to-catalog", f"It keeps its price: {pays}"),
        ("--keep-price", f"{pays[0].upper()}{pays[1:]}"),
    ):
        shown = words_of(types("adopt", org_id))
        assert text in shown
        commands_shown = re.findall(r"`billing-sync (adopt .+?)`", shown)
        assert commands_shown == [f"adopt release {org_id}", f"adopt {org_id} {option}"]
        for command in commands_shown:
            done = types(*command.split(), "--yes")
            assert done.exit_code == 0, done.output
    assert "It keeps its price: it pays" in words_of(types("adopt", org_id))
    assert theirs.writes() == []


def test_one_that_could_not_be_adopted_again_is_not_told_that_it_could(
    theirs: AdoptionHarness, types: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its price is in no plan. An operator wrote the plan into the table."""
    monkeypatch.setenv("CHARGED_BY", "stripe")
    theirs.world.set_charging_provider("stripe")
    org_id = theirs.world.create("Acme", "professional")
    at_a_former_price(theirs, "unknown")
    row = theirs.row(org_id=org_id, stripe="cus_theirs", action="adopt-keep-price", name_source="ours")
    write_table(tmp_path / "table.csv", [row])
    assert types("adopt", "apply", str(tmp_path / "table.csv")).exit_code == 0
    shown = words_of(types("adopt", org_id))
    assert "It keeps its price: it pays 40.00 USD a month" in shown
    assert "gives it back; before it could be adopted again: it pays 40.00 USD a month under the code unknown" in shown


def test_customers_that_we_made_are_not_called_adopted(theirs: AdoptionHarness, types: Type) -> None:
    org_id = theirs.world.create("Acme", "professional")
    theirs.world.reconcile_until_idle(org_id)
    assert "billing-sync made its customers, so there is nothing to adopt" in words_of(types("adopt", org_id))


@pytest.mark.parametrize("ours", ["starter", "professional"])
def test_a_plan_that_is_sold_no_longer_is_given_by_the_command_that_the_refusals_name(
    theirs: AdoptionHarness, types_with_former_ones: Type, tmp_path: Path, ours: str
) -> None:
    types = types_with_former_ones
    theirs.lago_customer(plan="enterprise", payer=theirs.stripe_customer())
    org_id = theirs.world.create("Acme", ours)
    row = theirs.row(org_id=org_id, stripe="cus_theirs", lago="acme", tier="enterprise", name_source="ours")
    write_table(tmp_path / "table.csv", [row])
    conflict = types("adopt", org_id, "--lago", "acme", "--keep-price")
    refused = types("adopt", "apply", str(tmp_path / "table.csv"))
    command = f"`billing-sync adopt {org_id} --their-plan --stripe cus_theirs --lago acme`"
    assert command in str(conflict.exception)
    assert command in words_of(refused)
    assert "sold no longer" in str(types("set", org_id, "--plan", "enterprise", "--yes").exception)
    adopted = types(*command.strip("`").split()[1:])
    assert adopted.exit_code == 0, adopted.output
    assert f"{org_id} changes from {ours} to enterprise" in words_of(adopted)
    assert ownerships(theirs, org_id) == ["adopted", "adopted"]
    assert theirs.world.organization(org_id).plan_tier == "enterprise"
    theirs.world.reconcile_until_idle(org_id)
    assert theirs.world.organization(org_id).plan_tier == "enterprise"
    assert {call.path for call in theirs.writes()} == {"/v1/customers/cus_theirs"}


def test_their_plan_replaces_no_change_that_nobody_was_shown(theirs: AdoptionHarness) -> None:
    org_id = theirs.world.create("Acme", "starter")
    theirs.lago_customer(plan="professional", payer=theirs.stripe_customer())
    row = theirs.row(org_id=org_id, stripe="cus_theirs", lago="acme", tier="professional", name_source="ours")
    shown = theirs.world.organization(org_id).version
    adopter = theirs.adopter()
    adopter = replace(adopter, rules=replace(adopter.rules, takes_their_plan=True, shown_version=shown))
    theirs.world.change_plan(org_id, "enterprise")
    (result,) = adopter.apply([row])
    assert result.kind == "left"
    assert "changed since it was shown" in str(result.reason)
    assert theirs.world.organization(org_id).plan_tier == "enterprise"


def test_their_plan_is_one_that_is_paid(theirs: AdoptionHarness, types: Type) -> None:
    org_id = theirs.world.create("Acme", "professional")
    theirs.lago_customer(payer=theirs.stripe_customer())
    refused = types("adopt", org_id, "--lago", "acme", "--their-plan", "--yes")
    assert "has no subscription, so it pays for no plan: leave out --their-plan" in str(refused.exception)
    assert ownerships(theirs, org_id) == ["ours", "ours"]


def test_a_payer_is_given_only_when_an_operator_says_so(theirs: AdoptionHarness, types: Type) -> None:
    theirs.lago_customer(plan="professional", payer=None)
    org_id = theirs.world.create("Acme", "professional")
    stripe = theirs.stripe_customer()
    adopted = types("adopt", org_id, "--lago", "acme", "--stripe", stripe, "--without-marks")
    assert "it is given none" in words_of(adopted)
    theirs.world.reconcile_until_idle(org_id)
    assert theirs.writes() == []
    asked = types("adopt", org_id, "--give-payer")
    assert isinstance(asked.exception, UsageError)
    assert f"once it is managed, Lago charges {stripe} in Stripe" in words_of(asked)
    assert types("adopt", org_id, "--give-payer", "--yes").exit_code == 0
    theirs.world.wait(10)
    theirs.world.reconcile_until_idle(org_id)
    (customer,) = theirs.world.sandbox.state()["lago"]["customers"]
    assert customer["billing_configuration"]["provider_customer_id"] == stripe
    again = types("adopt", org_id, "--give-payer", "--yes")
    assert "was not adopted without a payer" in str(again.exception)


@pytest.mark.parametrize("options", [("--keep-price", "--to-catalog"), ("--give-payer", "--lago", "acme")])
def test_one_choice_is_made_at_a_time(types: Type, org_id: str, options: tuple[str, ...]) -> None:
    refused = types("adopt", org_id, *options)
    assert isinstance(refused.exception, UsageError)
    assert str(refused.exception) == "choose one: --keep-price, --to-catalog, or --give-payer alone"


@pytest.mark.parametrize(
    ("words", "problem", "command"),
    [
        (("discovr", "--out", "a.csv"), "No such option: --out", "adopt discover"),
        (("discovr",), "there is no organization 'discovr'", "adopt discover"),
        (("relase", "org_x"), "Got unexpected extra argument", "adopt release"),
    ],
)
def test_a_misspelt_command_that_looks_like_an_organization_is_named(
    types: Type, words: tuple[str, ...], problem: str, command: str
) -> None:
    ended = types("adopt", *words)
    assert isinstance(ended.exception, UsageError)
    assert str(ended.exception).startswith(problem)
    assert str(ended.exception).endswith(f" {command}`?")


def test_what_is_nearly_no_command_is_an_organization_that_is_not_known(types: Type) -> None:
    ended = types("adopt", "Apple")
    assert str(ended.exception).startswith("there is no organization 'Apple'")
    assert "Did you mean" not in str(ended.exception)


def test_a_release_ends_the_mode_manage_so_that_the_next_adoption_writes_nothing(
    theirs: AdoptionHarness, types_that_observe: Type, org_id: str
) -> None:
    world, types = theirs.world, types_that_observe
    world.management = "observe"
    world.set_mode(org_id, "manage")
    adopted = words_of(types("adopt", org_id, "--lago", "acme"))
    assert "It is managed: what follows from its adoption is written at once." in adopted
    assert "Adopted. It is managed, so our metadata in Stripe" in adopted
    assert "Nothing was written" not in adopted
    world.reconcile_until_idle(org_id)
    world.wait(10)
    released = words_of(types("adopt", "release", org_id, "--yes"))
    assert "Only our metadata in Stripe is removed; nothing else is written." in released
    assert "nothing is written at a provider" not in released
    world.reconcile_until_idle(org_id)
    assert world.organization(org_id).management is None
    theirs.world.sandbox.reset_calls()
    again = words_of(types("adopt", org_id, "--lago", "acme"))
    assert "Adopted. Nothing was written at a provider." in again
    world.wait(10)
    world.reconcile_until_idle(org_id)
    assert theirs.writes() == []


def test_an_adoption_says_that_the_organization_is_still_observed_by_its_own_mode(
    theirs: AdoptionHarness, types: Type, org_id: str
) -> None:
    theirs.world.set_mode(org_id, "observe")
    adopted = words_of(types("adopt", org_id, "--lago", "acme"))
    assert f"`billing-sync management inherit {org_id}` ends that" in adopted
