"""``adopt apply`` and ``adopt release`` as an operator types them, against the sandbox."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from typer.testing import CliRunner, Result

from core.adoption.adopter import ReadT
from core.adoption.price_change import price_change, totals
from core.adoption.row import AdoptionRow
from core.adoption.table import read_table, write_table
from core.catalog.plans import DEFAULT_PLANS_FILE
from core.db.models.billing_links import BillingLink
from core.ports.inventory import Inventory
from core.ports.spec import Provider
from sandbox.server import Sandbox
from tests.support.adoption_harness import AdoptionHarness
from tests.support.sync_world import SyncWorld
from worker.cli import adopt_table
from worker.cli.app import app as commands
from worker.cli.exit_codes import UsageError

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
def table(theirs: AdoptionHarness, tmp_path: Path) -> Path:
    """Three rows: one to adopt, one that changed since, one without a payer."""
    rows = [customer(theirs, "first"), customer(theirs, "second"), customer(theirs, "third", payer=None)]
    theirs.world.sandbox.patch("lago", "customers", "second", name="Renamed")
    return written(tmp_path, rows)


def customer(theirs: AdoptionHarness, name: str, **fields: Any) -> AdoptionRow:  # noqa: ANN401 - JSON
    stripe = theirs.stripe_customer(f"cus_{name}", name=f"The {name}")
    lago = theirs.lago_customer(
        name, **{"payer": stripe, "plan": "professional", "subscription": f"{name}-contract", "name": name, **fields}
    )
    return theirs.row(stripe=stripe, lago=lago)


def written(folder: Path, rows: list[AdoptionRow], name: str = "table.csv") -> Path:
    write_table(folder / name, rows)
    return folder / name


def results_of(result: Result) -> list[tuple[str, str]]:
    document: dict[str, Any] = json.loads(result.stdout)
    return [(each["name"], each["result"]) for each in document["results"]]


def test_each_row_has_a_result_and_nothing_is_written_at_a_provider(
    theirs: AdoptionHarness, types: Type, table: Path
) -> None:
    shown = types("adopt", "apply", str(table))
    assert shown.exit_code == 1, shown.output
    text = " ".join(shown.stdout.split())
    assert "left it changed: name at Stripe was The second and is Renamed; email at Stripe was" in text
    assert "2 adopted, 1 left; 2 organizations of them new." in text
    assert max(len(line) for line in shown.stdout.splitlines()) <= 80
    again = types("adopt", "apply", str(table), "--json")
    assert results_of(again) == [
        ("The first", "already_adopted"),
        ("The second", "left"),
        ("The third", "already_adopted"),
    ]
    assert theirs.writes() == []


def test_a_dry_run_stores_nothing_and_a_limit_goes_on_where_the_last_one_ended(types: Type, table: Path) -> None:
    dry = types("adopt", "apply", str(table), "--dry-run")
    assert "Nothing was stored. It would be: 2 adopted, 1 left" in " ".join(dry.stdout.split())
    assert "Lago third: would be adopted Lago charges nobody" in " ".join(dry.stdout.split())
    first = types("adopt", "apply", str(table), "--limit", "1", "--json")
    assert [kind for _, kind in results_of(first)] == ["adopted", "not_tried", "not_tried"]
    second = types("adopt", "apply", str(table), "--limit", "1", "--json")
    assert [kind for _, kind in results_of(second)] == ["already_adopted", "left", "adopted"]


def test_what_changes_a_price_says_its_amount_and_is_confirmed(
    theirs: AdoptionHarness, types: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHARGED_BY", "stripe")
    theirs.world.set_charging_provider("stripe")
    file = written(tmp_path, [replace(at_price(theirs, "cus_first", 4000, 1), action="change-to-catalog")])
    refused = types("adopt", "apply", str(file))
    assert isinstance(refused.exception, UsageError)
    assert "add --yes" in str(refused.exception)
    assert "1 price will change to the catalog's, before discounts:" in refused.stdout
    assert "cus_first: 40.00 USD → 49.00 USD monthly\nIn all +9.00 USD monthly" in refused.stdout
    stored = types("adopt", "apply", str(file), "--yes")
    assert stored.exit_code == 0, stored.output
    assert "the price changes to the catalog's once the organization is managed" in " ".join(stored.stdout.split())
    # What is adopted already is not confirmed again.
    assert "will change" not in types("adopt", "apply", str(file)).stdout
    assert theirs.writes() == []


def to_catalog(theirs: AdoptionHarness, folder: Path, *prices: int) -> Path:
    """A table of Stripe customers at prices of their own, which are to change."""
    theirs.world.set_charging_provider("stripe")
    rows = [at_price(theirs, f"cus_{amount}", amount, 1) for amount in prices]
    return written(folder, [replace(row, action="change-to-catalog") for row in rows])


def test_json_is_all_of_standard_output_also_where_amounts_are_confirmed(
    theirs: AdoptionHarness, types: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHARGED_BY", "stripe")
    file = to_catalog(theirs, tmp_path, 4000)
    refused = types("adopt", "apply", str(file), "--json")
    assert isinstance(refused.exception, UsageError)
    assert "nobody can confirm it without a terminal: add --yes" in str(refused.exception)
    stored = types("adopt", "apply", str(file), "--json", "--yes")
    assert results_of(stored) == [("cus_4000", "adopted")]
    for each in (refused, stored):
        assert "1 price will change to the catalog's" in each.stderr
    assert refused.stdout == ""


@pytest.mark.parametrize(
    ("limit", "shown", "results"),
    [
        ("1", ["1 price", "cus_4000: 40.00", "In all +9.00"], ["adopted", "not_tried", "not_tried", "not_tried"]),
        ("2", ["2 prices", "cus_4000: 40.00", "cus_2000: 20.00", "In all +38.00"], ["adopted", "left", "adopted"]),
    ],
)
def test_with_a_limit_exactly_the_amounts_of_the_rows_that_it_allows_are_confirmed(  # noqa: PLR0913, PLR0917 - a case
    theirs: AdoptionHarness,
    types: Type,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    shown: list[str],
    results: list[str],
) -> None:
    """The second row is left, so it does not count."""
    monkeypatch.setenv("CHARGED_BY", "stripe")
    file = to_catalog(theirs, tmp_path, 4000, 3000, 2000, 1000)
    theirs.world.sandbox.patch("stripe", "customers", "cus_3000", name="Renamed")
    words = ("adopt", "apply", str(file), "--limit", limit)
    for each in (types(*words), types(*words, "--dry-run")):
        lines = each.stdout.splitlines()[: len(shown)]
        assert [line.strip().startswith(text) for line, text in zip(lines, shown, strict=True)] == [True] * len(shown)
    assert ownerships(theirs) == []
    applied = types(*words, "--json", "--yes")
    assert [kind for _, kind in results_of(applied)] == [*results, "not_tried"][:4]
    assert len(ownerships(theirs)) == 2 * int(limit)


def at_price(theirs: AdoptionHarness, customer_id: str, amount: int, quantity: int) -> AdoptionRow:
    """A Stripe customer at a price of its own."""
    sandbox = theirs.world.sandbox
    product = sandbox.create("stripe", "products", name="Old")
    price = {"product": product["id"], "unit_amount": amount, "currency": "usd", "recurring": {"interval": "month"}}
    price_id = str(sandbox.preload_stripe_prices([price])[0]["id"])
    stripe = theirs.stripe_customer(customer_id, name=customer_id)
    sandbox.preload_stripe_subscription(stripe, price_id, quantity=quantity)
    return theirs.row(stripe=stripe)


def test_the_total_of_all_changes_counts_quantities_and_says_what_it_leaves_out(
    theirs: AdoptionHarness,
) -> None:
    theirs.world.set_charging_provider("stripe")
    rows = [at_price(theirs, f"cus_{quantity}", 4000, quantity) for quantity in (1, 3)]
    rows.append(replace(rows[0], sides={"stripe": replace(rows[0].sides["stripe"], amount=None)}))
    changes = [
        change
        for row in rows
        if (change := price_change(replace(row, action="change-to-catalog"), theirs.world.catalog)) is not None
    ]
    assert [each.difference for each in changes] == [900, 2700, None]
    assert totals(changes) == {("USD", "monthly"): 3600}
    assert price_change(rows[0], theirs.world.catalog) is None
    listed = replace(at_price(theirs, "cus_listed", 4900, 1), action="change-to-catalog")
    assert price_change(listed, theirs.world.catalog) is None


def test_amounts_of_rows_that_are_then_left_are_not_confirmed(
    theirs: AdoptionHarness, types: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHARGED_BY", "stripe")
    file = to_catalog(theirs, tmp_path, 4000, 3000)
    theirs.world.sandbox.patch("stripe", "customers", "cus_3000", name="Renamed")
    applied = types("adopt", "apply", str(file), "--yes")
    assert "1 price will change to the catalog's" in applied.stdout
    assert "cus_3000: 30.00" not in applied.stdout
    assert "1 adopted, 1 left" in applied.stdout


def test_ctrl_c_says_how_far_it_came(theirs: AdoptionHarness, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = read_table(table)

    def read(provider: Provider, read_inventory: Callable[[Inventory], ReadT]) -> ReadT:
        if ownerships(theirs):
            raise KeyboardInterrupt
        return theirs.read(provider, read_inventory)

    with pytest.raises(KeyboardInterrupt):
        adopt_table.apply_rows(replace(theirs.adopter(), read=read), rows, None)
    assert capsys.readouterr().err == "Stopped. 1 is adopted; the same command goes on.\n"


def test_what_begins_to_charge_is_confirmed_before_anything_is_stored(
    theirs: AdoptionHarness, types: Type, tmp_path: Path
) -> None:
    """Each row says ``adopt``, and has no subscription. Lago is given no payer where it has none."""
    rows = [customer(theirs, name, plan=None) for name in ("first", "second")]
    rows += [customer(theirs, "free", plan=None, payer=None), customer(theirs, "paid")]
    file = written(tmp_path, rows)
    refused = types("adopt", "apply", str(file))
    assert isinstance(refused.exception, UsageError)
    assert "add --yes" in str(refused.exception)
    assert refused.stdout.splitlines() == [
        "2 new subscriptions will begin to charge once managed, before discounts:",
        "  The first: 49.00 USD monthly, charged by Lago",
        "  The second: 49.00 USD monthly, charged by Lago",
        "In all 98.00 USD monthly",
    ]
    assert ownerships(theirs) == []
    assert types("adopt", "apply", str(file), "--yes").exit_code == 0
    assert "will begin" not in types("adopt", "apply", str(file)).stdout
    assert theirs.writes() == []


def test_a_file_that_cannot_be_read_is_one_sentence(types: Type, tmp_path: Path) -> None:
    (tmp_path / "cut.csv").write_text("action,org_id\nadopt")
    refused = types("adopt", "apply", str(tmp_path / "cut.csv"))
    assert isinstance(refused.exception, UsageError)
    assert "cut.csv line 1: the column row is missing" in str(refused.exception)


def test_a_release_gives_it_back_and_it_can_be_adopted_again(theirs: AdoptionHarness, types: Type, table: Path) -> None:
    types("adopt", "apply", str(table), "--limit", "1")
    released = types("adopt", "release", "first", "--yes")
    assert released.exit_code == 0, released.output
    assert "Given back: it is observed, and nothing is written to it." in released.stdout
    assert ownerships(theirs) == ["theirs", "theirs"]
    assert "It is not adopted, so nothing was given back" in types("adopt", "release", "first", "--yes").stdout
    again = types("adopt", "apply", str(table), "--limit", "1", "--json")
    assert [kind for _, kind in results_of(again)] == ["rejected", "left", "adopted"]


def ownerships(theirs: AdoptionHarness) -> list[str]:
    with theirs.world.database.read() as session:
        return list(session.scalars(select(BillingLink.ownership)))


def test_who_was_never_adopted_is_not_said_to_be_given_back_before(theirs: AdoptionHarness, types: Type) -> None:
    org_id = theirs.world.create("Ours")
    theirs.world.set_customer_id(org_id, "stripe", theirs.stripe_customer())
    shown = types("adopt", "release", org_id, "--yes").stdout
    assert "It is not adopted, so nothing was given back or changed." in " ".join(shown.split())
    assert "before" not in shown


def test_what_we_made_cannot_be_given_back(theirs: AdoptionHarness, types: Type) -> None:
    theirs.world.create("Ours")
    refused = types("adopt", "release", "Ours", "--yes")
    assert isinstance(refused.exception, UsageError)
    assert "was not adopted: billing-sync made its customers" in str(refused.exception)
