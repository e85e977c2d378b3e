"""`management`: an organization's own mode, and the report of what would be written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from core.common.clock import utc_now
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.db.models.inbox import ProviderWebhook
from core.db.models.organizations import Organization
from core.org_manager import OrgManager
from core.ports.planned import PlannedPrice, PlannedStep
from core.ports.spec import CUSTOMER_NOT_OURS
from core.reconcile import observation
from core.reconcile.observation import Observation, ObservedProblem
from core.reporting.observed import observed_organizations
from tests.support import console
from worker.cli import output

STEPS = (
    PlannedStep(kind="update_customer", object_id="cus_1", fields=("name", "email")),
    PlannedStep(
        kind="change_plan",
        object_id="sub_1",
        before="starter_monthly_usd",
        after="enterprise_monthly_usd",
        price_before=PlannedPrice(amount=1900, currency="USD", interval="monthly"),
        price_after=PlannedPrice(amount=9900, currency="USD", interval="monthly"),
    ),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return console.prepare(tmp_path)


@pytest.fixture
def manager(folder: Path) -> Iterator[OrgManager]:
    opened = OrgManager(data_dir=folder / "data")
    yield opened
    opened.close()


def database_of(folder: Path) -> Database:
    return Database(f"sqlite:///{folder / 'data' / 'billing-sync.db'}")


def observe_with(folder: Path, org_id: str, stripe: Observation) -> None:
    """As an attempt at the Stripe link leaves it."""
    database = database_of(folder)
    with database.write() as session:
        link = session.get_one(BillingLink, (org_id, "stripe"))
        link.state, link.observation, link.observed_at = "observed", observation.to_json(stripe), utc_now()
    database.close()


def mode_of(folder: Path, org_id: str) -> str | None:
    database = database_of(folder)
    with database.read() as session:
        mode = session.get_one(Organization, org_id).management
    database.close()
    return mode


def test_the_mode_of_an_organization_is_set_and_said(folder: Path, manager: OrgManager) -> None:
    org_id = manager.create_organization("Acme")
    shown = console.run(folder, "management", "observe", "Acme").stdout
    assert f"{org_id}: observe." in shown
    assert mode_of(folder, org_id) == "observe"
    assert "Nothing was changed" in console.run(folder, "management", "observe", org_id).stdout
    console.run(folder, "management", "manage", org_id, "--yes")
    assert mode_of(folder, org_id) == "manage"


def test_an_own_mode_ends_with_that_of_the_installation(folder: Path, manager: OrgManager) -> None:
    org_id = manager.create_organization("Acme")
    console.run(folder, "management", "observe", org_id)
    asked = console.run(folder, "management", "inherit", org_id)  # nobody has read yet what would be written
    assert "add --yes" in asked.stderr
    assert mode_of(folder, org_id) == "observe"
    shown = console.run(folder, "management", "inherit", org_id, "--yes").stdout
    assert f"{org_id}: as MANAGEMENT, manage." in shown
    assert mode_of(folder, org_id) is None
    assert "Nothing was changed" in console.run(folder, "management", "inherit", org_id).stdout
    assert "mode: as MANAGEMENT" in console.run(folder, "history", org_id).stdout


def test_without_an_organization_the_way_out_is_said(folder: Path, manager: OrgManager) -> None:
    org_id = manager.create_organization("Acme")
    ended = console.run(folder, "management", "observe")
    assert ended.returncode != 0
    assert "set MANAGEMENT=observe for every process" in " ".join(ended.stderr.split())
    assert mode_of(folder, org_id) is None


def test_the_report_shows_each_step_with_its_money(folder: Path, manager: OrgManager) -> None:
    org_id = manager.create_organization("Acme")
    manager.create_organization("Managed")
    console.run(folder, "management", "observe", org_id)
    observe_with(folder, org_id, Observation(version=2, steps=STEPS))
    shown = " ".join(console.run(folder, "management", "report", settings={"COLUMNS": "200"}).stdout.split())
    assert "Stripe: update the customer cus_1 in Stripe: name, email" in shown
    assert (
        "change the subscription sub_1 in Stripe from starter_monthly_usd to enterprise_monthly_usd now: "
        "19.00 USD monthly → 99.00 USD monthly"
    ) in shown
    assert "Lago: not read yet" in shown
    assert " ago Stripe: update the customer" in shown
    assert "All steps together, monthly, at once: 19.00 USD → 99.00 USD" in shown
    assert "Managed" not in shown
    document = json.loads(console.run(folder, "management", "report", "--json").stdout)
    (row,) = document["organizations"]
    assert (row["org_id"], row["observations"]["lago"]) == (org_id, None)
    assert [step["kind"] for step in row["observations"]["stripe"]["steps"]] == ["update_customer", "change_plan"]
    money = {"currency": "USD", "interval": "monthly", "at_period_end": False, "before": 1900, "after": 9900}
    assert document["money"] == [money]


def test_what_nobody_pays_counts_in_no_sum(folder: Path, manager: OrgManager) -> None:
    """Where Stripe charges, Lago's has no payer. What a period's end changes is a sum of its own."""
    org_id = manager.create_organization("Acme")
    console.run(folder, "management", "observe", org_id)
    observe_with(folder, org_id, Observation(version=2, is_paid=False, steps=STEPS))
    shown = " ".join(console.run(folder, "management", "report", settings={"COLUMNS": "200"}).stdout.split())
    assert "19.00 USD monthly → 99.00 USD monthly, which nobody pays in Stripe" in shown
    assert "All steps together change nothing in what is paid." in shown
    later = tuple(replace(step, at_period_end=True) for step in STEPS)
    observe_with(folder, org_id, Observation(version=2, steps=later))
    shown = " ".join(console.run(folder, "management", "report", settings={"COLUMNS": "200"}).stdout.split())
    assert "All steps together, monthly, at the end of the periods: 19.00 USD → 99.00 USD" in shown


def test_the_report_and_the_status_say_what_would_park_the_link(folder: Path, manager: OrgManager) -> None:
    org_id = manager.create_organization("Acme")
    problem = ObservedProblem(kind="rejected", code="customer_deleted", message="customer cus_1 was deleted in Stripe")
    observe_with(folder, org_id, Observation(version=1, problem=problem))
    settings = {"MANAGEMENT": "observe", "COLUMNS": "200"}
    for words in (("management", "report"), ("status", org_id)):
        shown = console.run(folder, *words, settings=settings).stdout
        assert "would be parked: customer cus_1 was deleted in Stripe" in shown
    status = console.run(folder, "status", org_id, settings=settings).stdout
    assert "observed" in status
    assert "nothing is written" in status
    assert "Nothing is parked." in console.run(folder, "parked", settings=settings).stdout


def test_what_is_not_ours_is_to_be_adopted_first(folder: Path, manager: OrgManager) -> None:
    org_id = manager.create_organization("Acme")
    database = database_of(folder)
    with database.write() as session:
        session.get_one(BillingLink, (org_id, "lago")).ownership = "theirs"
    database.close()
    shown = console.run(folder, "management", "report", settings={"COLUMNS": "200"}).stdout
    assert f"not adopted yet: `billing-sync adopt {org_id}` or `billing-sync adopt discover`" in shown


@pytest.mark.parametrize("provider", ["stripe", "lago"])
def test_nobody_is_told_to_make_way_for_us_at_what_is_to_be_adopted(
    folder: Path, manager: OrgManager, provider: str
) -> None:
    """To follow such a problem would end what the customer pays for. Also at the half that has nothing of theirs."""
    org_id = manager.create_organization("Acme")
    message = "customer cus_1 pays for what we did not create; end it in Stripe"
    problem = ObservedProblem(kind="rejected", code="not_ours", message=message)
    observe_with(folder, org_id, Observation(version=1, steps=STEPS[:1], problem=problem))
    database = database_of(folder)
    with database.write() as session:
        session.get_one(BillingLink, (org_id, provider)).ownership = "theirs"
    database.close()
    settings = {"COLUMNS": "200"}
    for words in (("management", "report"), ("status", org_id)):
        shown = console.run(folder, *words, settings=settings).stdout
        assert "end it in Stripe" not in shown
        assert "parked:" not in shown
        assert "update the customer cus_1 in Stripe: name, email" in shown
        assert (
            f"not adopted yet: `billing-sync adopt {org_id}` or `billing-sync adopt discover` says what it is" in shown
        )
    document = json.loads(console.run(folder, "management", "report", "--json").stdout)
    assert document["organizations"][0]["observations"]["stripe"]["problem"]["message"] == message


def test_a_link_on_hold_or_that_is_read_again_is_said_beside_what_was_read(folder: Path, manager: OrgManager) -> None:
    org_id = manager.create_organization("Acme")
    console.run(folder, "management", "observe", org_id)
    observe_with(folder, org_id, Observation(version=2, steps=STEPS))
    database = database_of(folder)
    with database.write() as session:
        session.get_one(BillingLink, (org_id, "stripe")).state = "active"
        lago = session.get_one(BillingLink, (org_id, "lago"))
        lago.state, lago.error_kind, lago.error_message = "on_hold", "import", "two customers have this id"
    database.close()
    shown = " ".join(console.run(folder, "management", "report", settings={"COLUMNS": "200"}).stdout.split())
    assert " ago; it is read again soon" in shown
    assert "Stripe: update the customer cus_1 in Stripe: name, email" in shown
    assert "All steps together, monthly, at once: 19.00 USD → 99.00 USD" in shown
    assert "Lago: not read yet; on hold: two customers have this id" in shown


def test_what_a_deleted_organization_has_that_is_not_ours_is_to_be_ended(folder: Path, manager: OrgManager) -> None:
    org_id = manager.create_organization("Acme")
    problem = ObservedProblem(kind="rejected", code=CUSTOMER_NOT_OURS, message="customer cus_1 may still pay")
    observe_with(folder, org_id, Observation(version=1, problem=problem))
    database = database_of(folder)
    with database.write() as session:
        session.get_one(BillingLink, (org_id, "stripe")).ownership = "theirs"
        session.get_one(Organization, org_id).status = "deleted"
    database.close()
    shown = console.run(folder, "management", "report", settings={"COLUMNS": "200"}).stdout
    assert "Stripe: customer cus_1 may still pay" in shown
    assert "not adopted yet" not in shown
    status = console.run(folder, "status", org_id, settings={"COLUMNS": "200"}).stdout
    assert "end its subscriptions in Stripe" in status
    assert "not adopted yet" not in status


@pytest.mark.parametrize("words", [("set", "--name", "Beta", "--yes"), ("retry",)])
def test_a_stored_change_says_of_the_organization_whether_it_is_observed(
    folder: Path, manager: OrgManager, words: tuple[str, ...]
) -> None:
    org_id = manager.create_organization("Acme")
    command, *options = words

    def stored(management: str) -> str:
        settings = {"MANAGEMENT": management, "COLUMNS": "200"}
        return console.run(folder, command, org_id, *options, settings=settings).stdout

    def rename_back() -> None:
        console.run(folder, "set", org_id, "--name", "Acme", "--yes")

    notice = f"{org_id} is observed, so nothing is written at a provider: `billing-sync management report {org_id}`"
    assert "is observed" not in stored("manage")
    rename_back()
    console.run(folder, "management", "observe", org_id)
    shown = stored("manage")
    assert notice in shown
    assert f"`billing-sync management manage {org_id}` manages it" in shown
    console.run(folder, "management", "manage", org_id, "--yes")
    rename_back()
    assert "nothing is written" not in stored("observe")
    rename_back()
    database = database_of(folder)
    with database.write() as session:
        session.get_one(BillingLink, (org_id, "lago")).ownership = "theirs"
    database.close()
    assert f"`billing-sync adopt {org_id}` adopts what is not ours" in stored("manage")


def test_a_stored_change_says_that_nothing_is_written(folder: Path, manager: OrgManager) -> None:
    org_id = manager.create_organization("Acme")
    shown = console.run(
        folder, "set", org_id, "--name", "Beta", "--yes", settings={"MANAGEMENT": "observe", "COLUMNS": "200"}
    ).stdout
    assert f"{org_id} is observed, so nothing is written at a provider" in shown


def change_links(folder: Path, org_id: str, provider: str, **values: object) -> None:
    database = database_of(folder)
    with database.write() as session:
        link = session.get_one(BillingLink, (org_id, provider))
        for name, value in values.items():
            setattr(link, name, value)
    database.close()


def delete_organization(folder: Path, org_id: str) -> None:
    database = database_of(folder)
    with database.write() as session:
        session.get_one(Organization, org_id).status = "deleted"
    database.close()


def words_of(folder: Path, *words: str) -> str:
    return " ".join(console.run(folder, *words, settings={"COLUMNS": "250"}).stdout.split())


def test_what_a_deleted_organization_has_is_said_of_each_half(folder: Path, manager: OrgManager) -> None:
    org_id = manager.create_organization("Acme")
    delete_organization(folder, org_id)
    change_links(folder, org_id, "stripe", ownership="theirs")
    observe_with(folder, org_id, Observation(version=1))
    change_links(folder, org_id, "lago", applied_version=1)
    shown = words_of(folder, "management", "report", org_id)
    assert "Lago: what is ours was ended" in shown
    assert "adopt it first" not in shown
    parked = {"state": "parked", "error_kind": "rejected", "error_message": "Lago refuses it"}
    change_links(folder, org_id, "lago", applied_version=0, **parked)
    assert "Lago: what is ours is not ended yet; parked: Lago refuses it" in words_of(folder, "management", "report")
    status = words_of(folder, "status", org_id)
    assert "nothing to do; the organization is deleted, and its customer, which is not ours, has no sub" in status
    assert "adopt it first" not in status
    retried = words_of(folder, "retry", org_id)
    assert f"What is ours of {org_id} is ended. In Stripe nothing is written, because its customer is not" in retried
    document = json.loads(console.run(folder, "management", "report", org_id, "--json").stdout)
    assert document["organizations"][0]["managed"] == ["lago"]


def test_the_report_reads_page_by_page_and_leaves_the_database_free(folder: Path, manager: OrgManager) -> None:
    """So not all are in memory, however many are observed, and a slow reader of the report delays nobody."""
    database = database_of(folder)
    ids = sorted(manager.create_organization(f"Acme {number}") for number in range(3))
    report = observed_organizations(database, "observe", utc_now(), per_page=2)
    found = [next(report).org_id]
    with database.write() as session:
        for org_id in ids[1:]:
            session.get_one(Organization, org_id).management = "manage"
    found += [each.org_id for each in report]
    assert found == ids[:2]
    database.close()


def test_json_is_written_row_by_row(capsys: pytest.CaptureFixture[str]) -> None:
    written: list[str] = []

    def rows() -> Iterator[dict[str, str]]:
        for name in ("Acme", "Beta\n\u2028Ltd"):
            yield {"name": name}
            written.append(capsys.readouterr().out)

    output.show_json_rows({"installation": "observe"}, "organizations", rows(), lambda: {"rows": len(written)})
    assert ["Acme" in each for each in written] == [True, False]
    document = "".join([*written, capsys.readouterr().out])
    expected = {"installation": "observe", "organizations": [{"name": "Acme"}, {"name": "Beta\n\u2028Ltd"}], "rows": 2}
    assert json.loads(document) == expected
    assert document == output.json_text(expected, indent=2) + "\n"


def test_the_report_counts_what_it_listed(folder: Path, manager: OrgManager) -> None:
    for name in ("Acme", "Beta"):
        console.run(folder, "management", "observe", manager.create_organization(name))
    assert "Organizations that are observed: 2." in words_of(folder, "management", "report")


def test_an_empty_report_is_a_document(folder: Path, manager: OrgManager) -> None:
    manager.create_organization("Acme")
    document = json.loads(console.run(folder, "management", "report", "--json").stdout)
    assert document == {"installation": "manage", "organizations": [], "money": []}


def test_a_retry_of_all_says_how_many_are_observed(folder: Path, manager: OrgManager) -> None:
    """By their own mode, or because they are not ours, and not by MANAGEMENT."""
    ids = [manager.create_organization(name) for name in ("Acme", "Beta", "Gamma")]
    console.run(folder, "management", "observe", ids[0])
    console.run(folder, "management", "manage", ids[2], "--yes")
    change_links(folder, ids[1], "lago", ownership="theirs")

    def retried(mode: str) -> str:
        for org_id in ids:
            change_links(folder, org_id, "stripe", state="parked", error_kind="rejected", error_message="no")
        return " ".join(
            console.run(folder, "retry", "--all", settings={"MANAGEMENT": mode, "COLUMNS": "250"}).stdout.split()
        )

    for mode in ("manage", "observe"):
        assert "3 organizations will be retried." in (shown := retried(mode))
        assert "Observed, so nothing is written at a provider: 2 of 3." in shown
        assert "MANAGEMENT" not in shown
    console.run(folder, "management", "manage", ids[0], "--yes")
    change_links(folder, ids[1], "lago", ownership="ours")
    assert "bserved" not in retried("manage")


def test_a_replay_says_whether_the_organization_is_observed(folder: Path, manager: OrgManager) -> None:
    org_id = manager.create_organization("Acme")
    change_links(folder, org_id, "stripe", customer_id="cus_1")
    database = database_of(folder)
    with database.write() as session:
        session.add(
            ProviderWebhook(
                provider="stripe",
                id="evt_1",
                type="customer.updated",
                effect="check",
                customer_id="cus_1",
                received_at=utc_now(),
                due_at=utc_now(),
                state="handled",
            )
        )
    database.close()

    def replayed(mode: str) -> str:
        settings = {"MANAGEMENT": mode, "COLUMNS": "250"}
        return " ".join(console.run(folder, "inbox", "replay", "evt_1", settings=settings).stdout.split())

    assert "is observed" not in (shown := replayed("manage"))
    assert f"`billing-sync status {org_id}` shows the result" in shown
    console.run(folder, "management", "observe", org_id)
    assert f"{org_id} is observed, so nothing is written at a provider" in replayed("manage")
    console.run(folder, "management", "manage", org_id, "--yes")
    assert "bserve" not in replayed("observe")


def test_the_report_begins_with_numbers_and_lists_only_changes_of_money_if_asked(
    folder: Path, manager: OrgManager
) -> None:
    dearer, renamed, _unread = (manager.create_organization(name) for name in ("Dearer", "Renamed", "Unread"))
    observe_with(folder, dearer, Observation(version=1, steps=STEPS))
    problem = ObservedProblem(kind="rejected", code="customer_deleted", message="it was deleted")
    observe_with(folder, renamed, Observation(version=1, steps=STEPS[:1], problem=problem))
    settings = {"MANAGEMENT": "observe", "COLUMNS": "200"}
    lines = console.run(folder, "management", "report", settings=settings).stdout.splitlines()
    assert lines[: lines.index("")] == [
        "MANAGEMENT=observe.",
        "Organizations that are observed: 3.",
        "not read yet: 3",
        "with a problem: 1",
        "with a change in what is paid: 1",
        "steps: 2 update customer, 1 change plan",
    ]
    shown = console.run(folder, "management", "report", "--only-money", settings=settings).stdout
    assert shown.splitlines()[:6] == lines[:6]
    assert ("Dearer" in shown, "Renamed" in shown, "Unread" in shown) == (True, False, False)
    listed = json.loads(console.run(folder, "management", "report", "--only-money", "--json", settings=settings).stdout)
    assert [each["org_id"] for each in listed["organizations"]] == [dearer]


def manage(folder: Path, org_id: str, *options: str) -> tuple[int, str, str]:
    ended = console.run(folder, "management", "manage", org_id, *options, settings={"COLUMNS": "200"})
    return ended.returncode, ended.stdout, " ".join(ended.stderr.split())


def set_observed(folder: Path, org_id: str, **observations: Observation) -> None:
    """Both links, as attempts leave them: nothing is left to read."""
    database = database_of(folder)
    with database.write() as session:
        version = session.get_one(Organization, org_id).version
        for provider in ("stripe", "lago"):
            link = session.get_one(BillingLink, (org_id, provider))
            stored = observations.get(provider, Observation(version=version))
            link.state, link.observation, link.observed_at = "observed", observation.to_json(stored), utc_now()
            link.applied_version = link.desired_version
    database.close()


def test_managing_shows_the_steps_and_asks_where_another_amount_is_paid(folder: Path, manager: OrgManager) -> None:
    org_id = manager.create_organization("Acme")
    console.run(folder, "management", "observe", org_id)
    set_observed(folder, org_id, stripe=Observation(version=2, steps=STEPS))
    code, shown, errors = manage(folder, org_id)
    assert code != 0
    assert "add --yes" in errors
    assert "19.00 USD monthly → 99.00 USD monthly" in shown
    assert mode_of(folder, org_id) == "observe"
    code, shown, _ = manage(folder, org_id, "--yes")
    assert code == 0
    assert "19.00 USD monthly → 99.00 USD monthly" in shown
    assert mode_of(folder, org_id) == "manage"


@pytest.mark.parametrize("is_paid", [True, False])
def test_managing_asks_nothing_where_nobody_pays_another_amount(
    folder: Path, manager: OrgManager, *, is_paid: bool
) -> None:
    org_id = manager.create_organization("Acme")
    console.run(folder, "management", "observe", org_id)
    steps = STEPS[:1] if is_paid else STEPS
    set_observed(folder, org_id, stripe=Observation(version=2, is_paid=is_paid, steps=steps))
    code, shown, _ = manage(folder, org_id)
    assert code == 0
    assert "update the customer cus_1 in Stripe" in shown
    assert mode_of(folder, org_id) == "manage"


def test_managing_asks_where_it_is_not_known_what_would_be_written(folder: Path, manager: OrgManager) -> None:
    org_id = manager.create_organization("Acme")
    console.run(folder, "management", "observe", org_id)
    code, shown, errors = manage(folder, org_id)
    assert code != 0
    assert "Stripe: not read since its last change, so what would be written is not known" in shown
    assert "add --yes" in errors
    assert mode_of(folder, org_id) == "observe"


def test_who_is_not_adopted_stays_observed_and_is_not_told_to_be_managed(folder: Path, manager: OrgManager) -> None:
    org_id = manager.create_organization("Acme")
    console.run(folder, "management", "observe", org_id)
    set_observed(folder, org_id, lago=Observation(version=2, steps=STEPS))
    database = database_of(folder)
    with database.write() as session:
        session.get_one(BillingLink, (org_id, "stripe")).ownership = "theirs"
    database.close()
    status = console.run(folder, "status", org_id, settings={"COLUMNS": "200"}).stdout
    assert "management manage" not in status
    assert "management manage" not in console.run(folder, "status", org_id, "--json").stdout
    code, shown, _ = manage(folder, org_id)
    assert code == 0
    assert f"it is not adopted, so it stays observed until it is: `billing-sync adopt {org_id}`" in shown
