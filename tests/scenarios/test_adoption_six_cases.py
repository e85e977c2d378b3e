"""Six customers that a real Lago had before us, as they were recorded: imported, discovered, adopted, managed.

Without adoption the import itself scheduled a downgrade on a paying subscription and gave a customer a payer unasked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from core.adoption import table
from core.adoption.adopter import AdoptionResult
from core.adoption.discovery import Discovery
from core.adoption.proposal import ProposalRules
from core.adoption.row import AdoptionRow
from core.ports.spec import PROVIDERS
from core.reconcile.low_priority_reader import LowPriorityReader
from sandbox.client import LoggedCall
from sandbox.server import Sandbox
from tests.support import lago_recordings
from tests.support.adoption_harness import AdoptionHarness
from tests.support.importer import Importer
from tests.support.predecessor_files import Text, organization
from tests.support.sync_world import SyncWorld

SIX_CASES: Final = "stories/adoption-six-cases.jsonl"
CASES: Final = ("SameId", "OwnIds", "OtherPlan", "OwnSub", "NoPayer", "NoSub")
ADOPTED: Final = tuple(case for case in CASES if case != "OtherPlan")
OWN_IDS_ORG: Final = "org_e218e7d0-9b47-45aa-b6e8-90a93231bb4c"
NO_PAYER_STRIPE: Final = "cus_gTSem1VJIiTdvG"


@dataclass(kw_only=True)
class SixCases:
    """``org_ids``: by the name of the case."""

    theirs: AdoptionHarness
    folder: Path
    org_ids: dict[str, str]

    @property
    def world(self) -> SyncWorld:
        return self.theirs.world

    def discover(self) -> dict[str, AdoptionRow]:
        """The rows, as the table that an operator gets has them."""
        discovery = Discovery(
            database=self.world.database,
            reader=LowPriorityReader(readers=self.theirs.inventories, purpose="discovery"),
            account_guard=self.world.account_guard,
            rules=ProposalRules(catalog=self.world.catalog),
            clock=self.world.clock,
        )
        run = discovery.run()
        file = self.folder / "table.csv"
        table.write_table(file, discovery.rows(run))
        discovery.end(run)
        case_by_org = {org_id: case for case, org_id in self.org_ids.items()}
        return {case_by_org[row.org_id or ""]: row for row in table.read_table(file)}

    def adopt_all(self) -> dict[str, AdoptionResult]:
        rows = self.discover()
        return dict(zip(rows, self.theirs.adopter().apply(rows.values()), strict=True))

    def reconcile_all(self) -> None:
        for org_id in self.org_ids.values():
            self.world.reconcile_until_idle(org_id)

    def manage(self) -> None:
        """As after `MANAGEMENT=manage` and a restart."""
        self.world.management = "manage"
        for org_id in self.org_ids.values():
            self.world.set_mode(org_id, "manage")
        self.world.sandbox.reset_calls()
        self.reconcile_all()

    def lago(self, object_type: str, **fields: object) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.world.sandbox.state()["lago"][object_type]
        return [each for each in found if fields.items() <= each.items()]

    def payer(self, external_id: str) -> object:
        (customer,) = self.lago("customers", external_id=external_id)
        return customer["billing_configuration"].get("provider_customer_id")

    def plans(self, external_id: str) -> list[tuple[str, str, str]]:
        """Of the customer's subscriptions: the external id, the plan and the state."""
        found = self.lago("subscriptions", external_customer_id=external_id)
        return [(each["external_id"], each["plan_code"], each["status"]) for each in found]

    def writes_about(self, *words: str) -> list[LoggedCall]:
        return [call for call in self.theirs.writes() if any(word in f"{call.path} {call.body}" for word in words)]


@pytest.fixture
def six(world: SyncWorld, sandbox_server: Sandbox, tmp_path: Path) -> Iterator[SixCases]:
    """What the recording had before the import, and the same organizations imported, in observe mode."""
    world.management = "observe"
    theirs = AdoptionHarness(world=world, url=sandbox_server.url)
    sent = [call.request for call in lago_recordings.calls(SIX_CASES) if (call.step, call.method) == ("start", "POST")]
    customers = [each["customer"] for each in sent if "customer" in each]
    stripe_ids = {each["name"]: _payer_of(each) or NO_PAYER_STRIPE for each in customers}
    world.sandbox.preload_stripe_customers(
        [{"id": stripe_id, "name": case, "email": "a@example.com"} for case, stripe_id in stripe_ids.items()]
    )
    lago_ids = {each["name"]: world.sandbox.preload_lago_customers([each])[0]["lago_id"] for each in customers}
    for each in (each["subscription"] for each in sent if "subscription" in each):
        world.sandbox.preload_lago_subscription(
            each["external_customer_id"], each["plan_code"], external_id=each["external_id"]
        )
    ids = {each["name"]: each["external_id"] for each in customers} | {"OwnIds": OWN_IDS_ORG}
    importer = Importer(database=world.database, plans=world.catalog, clock=world.clock, folder=tmp_path)
    importer.bring([_record(number, case, ids, stripe_ids, lago_ids) for number, case in enumerate(CASES)])
    world.sandbox.reset_calls()
    yield SixCases(theirs=theirs, folder=tmp_path, org_ids=ids)
    theirs.close()


def _payer_of(customer: dict[str, Any]) -> str | None:
    payer: str | None = customer.get("billing_configuration", {}).get("provider_customer_id")
    return payer


def _record(number: int, case: str, ids: dict[str, str], stripe_ids: dict[str, str], lago_ids: dict[str, str]) -> Text:
    tier = "professional" if case == "NoSub" else "starter"
    return organization(
        number,
        id=ids[case],
        name=f"{case} 286b0",
        plan_tier=tier,
        stripe_customer_id=stripe_ids[case],
        lago_customer_id=lago_ids[case],
    )


def test_the_table_has_a_row_for_each_with_the_other_plan_as_a_conflict_of_both_amounts(six: SixCases) -> None:
    six.reconcile_all()
    rows = six.discover()
    assert {case: row.action for case, row in rows.items()} == {
        **dict.fromkeys(CASES, "adopt"),
        "OtherPlan": "conflict",
    }
    assert "it pays 99.00 USD a month for enterprise" in rows["OtherPlan"].reason
    assert "is on starter, 19.00 USD a month" in rows["OtherPlan"].reason
    assert "adopting gives it none" in rows["NoPayer"].reason
    assert "billing-sync begins professional at Lago (49.00 USD a month)" in rows["NoSub"].reason
    assert six.theirs.writes() == []


def test_each_is_adopted_under_its_own_ids_and_nothing_is_written(six: SixCases) -> None:
    six.reconcile_all()
    results = six.adopt_all()
    assert {case: result.kind for case, result in results.items()} == {
        **dict.fromkeys(ADOPTED, "adopted"),
        "OtherPlan": "skipped",
    }
    external = {
        case: (link.external_customer_id, link.external_subscription_id)
        for case, org_id in six.org_ids.items()
        for link in [six.world.link(org_id, "lago")]
    }
    assert external == {
        **dict.fromkeys(CASES, (None, None)),
        "OwnIds": ("acme-286b0", "sub-286b0"),
        "OwnSub": (None, "contract-286b0"),
    }
    assert "it is given none" in results["NoPayer"].remarks[0]
    assert results["NoSub"].remarks == (
        "a subscription to professional will begin at Lago once the organization is managed",
    )
    six.reconcile_all()
    assert six.theirs.writes() == []


def test_once_managed_only_our_metadata_and_the_missing_subscription_are_written(six: SixCases) -> None:
    six.reconcile_all()
    six.adopt_all()
    charged = six.world.sandbox.charges()
    before = {case: six.plans(_external_id(six, case)) for case in CASES}
    six.manage()
    for case in ADOPTED:
        assert six.world.is_in_sync(six.org_ids[case]), case
    begun = (six.org_ids["NoSub"], "professional", "active")
    assert {case: six.plans(_external_id(six, case)) for case in CASES} == before | {"NoSub": [begun]}
    assert six.payer(six.org_ids["NoPayer"]) is None
    lago_writes = [call for call in six.theirs.writes() if call.provider == "lago"]
    assert [call.operation for call in lago_writes] == ["POST /api/v1/subscriptions"]
    stripe_writes = [call for call in six.theirs.writes() if call.provider == "stripe"]
    assert len(stripe_writes) == len(ADOPTED)
    assert {field.partition("[")[0] for call in stripe_writes for field in call.body.split("&")} == {"metadata"}
    new_charges = [each for each in six.world.sandbox.charges() if each not in charged]
    assert {each["customer"] for each in new_charges} == {six.org_ids["NoSub"]}


def test_nothing_is_sent_for_the_conflict_also_in_manage_mode(six: SixCases) -> None:
    six.reconcile_all()
    six.adopt_all()
    six.manage()
    org_id = six.org_ids["OtherPlan"]
    stripe_id = str(six.world.link(org_id, "stripe").customer_id)
    assert six.writes_about(org_id, stripe_id) == []
    assert six.plans(org_id) == [(org_id, "enterprise", "active")]


def _external_id(six: SixCases, case: str) -> str:
    return "acme-286b0" if case == "OwnIds" else six.org_ids[case]


def test_a_rename_and_an_upgrade_reach_each_under_its_own_ids(six: SixCases) -> None:
    six.reconcile_all()
    six.adopt_all()
    six.manage()
    for case in ADOPTED:
        org_id = six.org_ids[case]
        six.world.wait(10)
        six.world.rename(org_id, f"{case} GmbH")
        six.world.change_plan(org_id, "enterprise")
        six.world.reconcile_until_idle(org_id)
        subscription = {"OwnIds": "sub-286b0", "OwnSub": "contract-286b0"}.get(case, org_id)
        (customer,) = six.lago("customers", external_id=_external_id(six, case))
        assert customer["name"] == f"{case} GmbH"
        active = [each for each in six.plans(_external_id(six, case)) if each[2] == "active"]
        assert active == [(subscription, "enterprise", "active")]
        assert {six.world.link(org_id, each).state for each in PROVIDERS} == {"active"}
    assert len(six.lago("customers")) == len(CASES)
