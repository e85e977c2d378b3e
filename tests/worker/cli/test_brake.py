"""`brake`: what the payment brake stopped is listed, released and dropped, and what is meant is said before."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from core.common.clock import utc_now
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.org_manager import OrgManager
from tests.support import console

WHY = ("--reason", "new prices")
NO_VALUES: Mapping[str, str | None] = {}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return console.prepare(tmp_path)


@pytest.fixture
def manager(folder: Path) -> Iterator[OrgManager]:
    opened = OrgManager(data_dir=folder / "data")
    yield opened
    opened.close()


def put_on_hold(
    folder: Path, org_id: str, code: str = "plan_change_on_hold", values: Mapping[str, str | None] = NO_VALUES
) -> None:
    """As an attempt at the Lago link leaves it, which has the plan before."""
    database = Database(f"sqlite:///{folder / 'data' / 'billing-sync.db'}")
    with database.write() as session:
        link = session.get_one(BillingLink, (org_id, "lago"))
        link.state, link.error_kind, link.error_code, link.error_at = "on_hold", "payment_brake", code, utc_now()
        link.error_message, link.sold_plan = "it waits", "starter"
        for name, value in values.items():
            setattr(link, name, value)
    database.close()


def state_of(folder: Path, org_id: str) -> tuple[str, str | None]:
    database = Database(f"sqlite:///{folder / 'data' / 'billing-sync.db'}")
    with database.read() as session:
        link = session.get_one(BillingLink, (org_id, "lago"))
        found = (link.state, link.error_code)
    database.close()
    return found


@pytest.fixture
def on_hold(folder: Path, manager: OrgManager) -> list[str]:
    org_ids = [manager.create_organization(name, plan_tier="enterprise") for name in ("Acme", "Globex")]
    for org_id in org_ids:
        put_on_hold(folder, org_id)
    return org_ids


@pytest.mark.usefixtures("on_hold")
def test_the_list_shows_ends_first_and_both_amounts(folder: Path, manager: OrgManager) -> None:
    leaving = manager.create_organization("Initech", plan_tier="starter")
    assert console.run(folder, "set", leaving, "--status", "deleted", "--yes").returncode == 0
    put_on_hold(folder, leaving, "end_on_hold")
    shown = console.run(folder, "brake", "list", settings={"COLUMNS": "160"}).stdout
    assert "Changes of what organizations pay in the last hour: 0 of 50." in shown
    assert shown.index("Initech") < shown.index("Acme")
    assert "starter (19.00 USD monthly) → ended" in shown
    assert "starter (19.00 USD monthly) → enterprise (99.00 USD monthly)" in shown
    found = json.loads(console.run(folder, "brake", "list", "--json").stdout)
    assert [each["kind"] for each in found["on_hold"]] == ["end", "plan", "plan"]
    assert found["waiting"] == {"end_on_hold": 1, "plan_change_on_hold": 2}
    starter = {"amount": 1900, "currency": "USD", "interval": "monthly"}
    assert [(each["price_before"], each["price_after"]) for each in found["on_hold"]] == [
        (starter, None),
        *[(starter, starter | {"amount": 9900})] * 2,
    ]
    overview = console.run(folder, "status").stdout
    assert (
        "payment brake: 1 end of subscriptions and 2 other changes on hold; somebody who has left goes on paying"
        in overview
    )
    doctor = console.run(folder, "doctor").stdout
    assert doctor.index("1 link on hold: end_on_hold") < doctor.index("2 links on hold: plan_change_on_hold")
    assert "somebody who has left goes on paying" in doctor


def test_one_is_released_and_the_others_stay(folder: Path, on_hold: list[str]) -> None:
    first, second = on_hold
    refused = console.run(folder, "brake", "release", "--only", first, *WHY)
    assert "nothing was changed, because nobody can confirm it without a terminal: add --yes" in refused.stderr
    assert state_of(folder, first)[0] == "on_hold"
    released = console.run(folder, "brake", "release", "--only", "Acme", *WHY, "--yes")
    assert "enterprise (99.00 USD monthly)" in released.stdout
    assert "The change of 1 organization will be sent." in released.stdout
    assert "Released: 1 organization." in released.stdout
    assert state_of(folder, first) == ("active", None)
    assert state_of(folder, second)[0] == "on_hold"
    assert "the payment brake let it go: new prices" in console.run(folder, "history", first).stdout


def test_all_are_dropped_and_listed_as_that(folder: Path, on_hold: list[str]) -> None:
    dropped = console.run(folder, "brake", "drop", *WHY, "--yes")
    assert "Dropped for 2 organizations" in dropped.stdout
    assert [state_of(folder, org_id) for org_id in on_hold] == [("on_hold", "payment_change_dropped")] * 2
    shown = console.run(folder, "brake", "list").stdout
    assert shown.count("dropped") == len(on_hold)
    assert "payment brake" not in console.run(folder, "status").stdout
    nothing = console.run(folder, "brake", "drop", *WHY, "--yes")
    assert nothing.returncode != 0
    assert "nothing is on hold" in nothing.stderr


def test_an_end_of_a_deleted_organization_is_not_dropped_and_says_so(folder: Path, manager: OrgManager) -> None:
    leaving = manager.create_organization("Initech", plan_tier="starter")
    assert console.run(folder, "set", leaving, "--status", "deleted", "--yes").returncode == 0
    put_on_hold(folder, leaving, "end_on_hold")
    refused = console.run(folder, "brake", "drop", *WHY, "--yes")
    assert refused.returncode != 0
    assert "nothing is on hold that this can decide about" in refused.stderr
    assert state_of(folder, leaving) == ("on_hold", "end_on_hold")


def test_what_is_expected_is_listed_until_it_ends(folder: Path, manager: OrgManager) -> None:
    manager.create_organization("Acme")
    said = console.run(folder, "brake", "expect", "500", "--hours", "3", *WHY).stdout
    assert "500 changes of what organizations pay are sent beyond those of each hour" in said
    assert "500 more of 500 (new prices)" in console.run(folder, "brake", "list").stdout
    assert console.run(folder, "brake", "expect", "0", *WHY).returncode != 0
    (expected,) = json.loads(console.run(folder, "brake", "list", "--json").stdout)["expected"]
    withdrawn = console.run(folder, "brake", "withdraw", expected["id"]).stdout
    assert "Withdrawn: 0 of 500 expected changes were sent, and no more are expected." in withdrawn
    assert json.loads(console.run(folder, "brake", "list", "--json").stdout)["expected"] == []
    again = console.run(folder, "brake", "withdraw", expected["id"])
    assert (again.returncode, "no open expectation has the id" in again.stderr) == (2, True)


@pytest.mark.parametrize("words", [("release", "--yes"), ("drop", "--yes"), ("expect", "5")])
def test_a_reason_that_says_nothing_is_refused(folder: Path, on_hold: list[str], words: tuple[str, ...]) -> None:
    for reason, sentence in ((" \t", "--reason is empty: say why"), ("x" * 501, "--reason has 501 characters")):
        refused = console.run(folder, "brake", *words, "--reason", reason)
        assert (refused.returncode, sentence in refused.stderr) == (2, True)
    assert [state_of(folder, org_id)[0] for org_id in on_hold] == ["on_hold"] * 2


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"sold_plan": None, "applied_plan": None}, "unknown → enterprise (99.00 USD monthly)"),
        ({"sold_plan": "gone"}, "gone (unknown amount) → enterprise (99.00 USD monthly)"),
        ({"sold_price_id": "1500"}, "starter (15.00 USD monthly) → enterprise (99.00 USD monthly)"),
        ({"ownership": "adopted"}, "starter (unknown amount) → enterprise (99.00 USD monthly)"),
    ],
)
def test_the_list_shows_the_amount_that_was_sold_and_guesses_none(
    folder: Path, manager: OrgManager, values: dict[str, str | None], text: str
) -> None:
    put_on_hold(folder, manager.create_organization("Acme", plan_tier="enterprise"), values=values)
    assert text in console.run(folder, "brake", "list", settings={"COLUMNS": "160"}).stdout


@pytest.mark.parametrize("given", ["many", "2%"])
def test_a_limit_that_is_none_is_refused_by_name(folder: Path, given: str) -> None:
    shown = console.run(folder, "brake", "list", settings={"MONEY_CHANGES_PER_HOUR": given})
    assert "MONEY_CHANGES_PER_HOUR: must be a number (50)" in shown.stderr
