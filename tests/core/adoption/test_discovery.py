"""A discovery reads each account once. After a kill it goes on, and proposes what it would have proposed without."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from core.adoption import discovery_store
from core.adoption.discovery import DISCOVERY_PURPOSE, Discovery
from core.adoption.discovery_store import DiscoveryRun, DiscoveryTakenOverError
from core.adoption.proposal import ProposalRules
from core.adoption.row import AdoptionRow
from core.db.models.adoption import DiscoveryListing, DiscoveryProposal, DiscoveryRecord
from core.db.models.billing_links import BillingLink
from core.db.models.providers import ProviderStatus
from core.ports.inventory import Inventory
from core.reconcile.account_guard import WrongAccountError
from core.reconcile.low_priority_reader import LowPriorityReader
from providers.lago.provider import LagoProvider
from providers.stripe.provider import StripeProvider
from sandbox.server import Sandbox
from tests.support.adoption_harness import AdoptionHarness
from tests.support.sync_world import PAYMENT_PROVIDER_CODE, SyncWorld


@dataclass(kw_only=True)
class DiscoverySite:
    """``new_discovery``: as in another process, with no state but the rows."""

    harness: AdoptionHarness
    stripe: StripeProvider
    lago: LagoProvider

    @property
    def world(self) -> SyncWorld:
        return self.harness.world

    def new_discovery(self) -> Discovery:
        return Discovery(
            database=self.world.database,
            reader=LowPriorityReader[Inventory](
                readers={"stripe": self.stripe.inventory, "lago": self.lago.inventory},
                purpose=DISCOVERY_PURPOSE,
                sleep=self.world.wait,
            ),
            account_guard=self.world.account_guard,
            rules=ProposalRules(catalog=self.world.catalog),
            clock=self.world.clock,
        )

    def rows(self) -> list[AdoptionRow]:
        discovery = self.new_discovery()
        run = discovery.run()
        rows = list(discovery.rows(run))
        discovery.end(run)
        return rows

    def row(self) -> AdoptionRow:
        (row,) = self.rows()
        return row

    def interrupted(self, steps: int) -> DiscoveryRun:
        discovery = self.new_discovery()
        with self.world.database.write() as session:
            run = discovery_store.resume(session, self.world.clock())
        for _ in range(steps):
            discovery.step(run)
        return run

    def requests(self) -> int:
        return sum(self.world.count_requests())

    def fill(self, count: int) -> None:
        """Customers that Lago charges, with ids of their own."""
        sandbox = self.world.sandbox
        sandbox.preload_stripe_customers(
            [{"id": f"cus_{number}", "name": f"Customer {number}"} for number in range(count)]
        )
        configuration = {"payment_provider": "stripe", "payment_provider_code": PAYMENT_PROVIDER_CODE}
        sandbox.preload_lago_customers(
            [
                {
                    "external_id": f"acct-{number}",
                    "name": f"Customer {number}",
                    "billing_configuration": {**configuration, "provider_customer_id": f"cus_{number}"},
                }
                for number in range(count)
            ]
        )
        sandbox.preload_lago_subscriptions(
            [
                {"external_customer_id": f"acct-{number}", "external_id": f"sub-{number}", "plan_code": "professional"}
                for number in range(count)
            ]
        )
        sandbox.reset_calls()


@pytest.fixture
def site(world: SyncWorld, sandbox_server: Sandbox) -> Iterator[DiscoverySite]:
    harness = AdoptionHarness(world=world, url=sandbox_server.url)
    ending = world.catalog.ending
    stripe = StripeProvider("sk_test_sandbox", sandbox_server.url, ending=ending, clock=world.clock)
    lago = LagoProvider(sandbox_server.url, "sandbox", payment_provider_code=PAYMENT_PROVIDER_CODE, ending=ending)
    yield DiscoverySite(harness=harness, stripe=stripe, lago=lago)
    for each in (stripe, lago, harness):
        each.close()


def described(rows: list[AdoptionRow]) -> set[tuple[str | None, ...]]:
    return {
        (
            row.action,
            row.plan_tier,
            *(f"{provider} {side.customer_id} {side.subscription_id}" for provider, side in sorted(row.sides.items())),
        )
        for row in rows
    }


def test_both_sides_of_a_customer_are_one_row_that_apply_finds_unchanged(site: DiscoverySite) -> None:
    theirs = site.harness
    theirs.stripe_customer()
    theirs.lago_customer(plan="professional")
    row = site.row()
    assert (row.action, row.matched_by, row.plan_tier, row.org_id) == ("adopt", "payer", "professional", None)
    assert row.sides == {"stripe": theirs.side("stripe", "cus_theirs"), "lago": theirs.side("lago", "acme")}
    assert theirs.adopt(row).kind == "adopted"
    assert theirs.writes() == []


def test_what_is_adopted_or_ours_has_no_row(site: DiscoverySite) -> None:
    site.harness.stripe_customer()
    site.harness.lago_customer(plan="professional")
    assert site.harness.adopt(site.row()).kind == "adopted"
    site.world.reconcile_until_idle(site.world.create(name="Ours"))
    discovery = site.new_discovery()
    run = discovery.run()
    assert list(discovery.rows(run)) == []
    assert run.managed == 2


def test_a_coupon_in_lago_is_in_the_row_of_its_customer(site: DiscoverySite) -> None:
    site.harness.stripe_customer()
    site.harness.lago_customer(plan="professional")
    site.world.sandbox.preload_applied_coupons(
        [{"external_customer_id": "acme", "coupon_code": "loyal", "percentage_rate": "20.0"}]
    )
    row = site.row()
    assert (row.action, row.sides["lago"].coupon) == ("adopt-keep-price", "20 % off")
    assert row.sides["lago"] == site.harness.side("lago", "acme")


def test_an_imported_id_joins_and_one_that_is_gone_is_told(site: DiscoverySite) -> None:
    one, other = site.world.create(name="One"), site.world.create(name="Other")
    for org_id, customer_id in ((one, "cus_theirs"), (other, "cus_gone")):
        with site.world.database.write() as session:
            link = session.get_one(BillingLink, (org_id, "stripe"))
            link.customer_id, link.ownership, link.customer_state = customer_id, "theirs", "unconfirmed"
    site.harness.stripe_customer()
    by_org = {row.org_id: row for row in site.rows()}
    assert (by_org[one].action, by_org[one].matched_by) == ("adopt", "link")
    assert by_org[one].reason.startswith("it has no subscription; once it is managed, billing-sync begins")
    assert by_org[other].action == "conflict"
    assert by_org[other].reason.startswith(f"Stripe does not have cus_gone, the customer of {other}: it was deleted")


def test_names_and_addresses_of_organizations_and_customers_are_suggested(site: DiscoverySite) -> None:
    org_id = site.world.create(name="ACME  at Stripe", email="other@acme.test")
    site.harness.stripe_customer()
    site.harness.stripe_customer("cus_2", name="Umbrella", email="Other@acme.test")
    site.harness.lago_customer("u", payer=None, name="umbrella", plan="professional")
    suggestions = {next(iter(row.sides.values())).customer_id: row.suggestion for row in site.rows()}
    lago_id = next(key for key in suggestions if not key.startswith("cus_"))
    assert suggestions == {
        "cus_theirs": f"{org_id}: the same name",
        "cus_2": f"{org_id}: the same address",
        lago_id: "cus_2 at Stripe: the same name",
    }


def test_marks_count_by_the_database_that_wrote_them(site: DiscoverySite) -> None:
    org_id = site.world.create()
    with site.world.database.read() as session:
        database_id = session.get_one(ProviderStatus, "stripe").database_id
    for customer_id, named, written_by in (
        ("cus_1", org_id, database_id),
        ("cus_2", "org_lost", database_id),
        ("cus_3", "org_elsewhere", "another"),
    ):
        marks = {"billing_sync_org_id": named, "billing_sync_database_id": written_by}
        site.harness.stripe_customer(customer_id, name=customer_id, email=f"{customer_id}@a.test", metadata=marks)
    rows = {row.sides["stripe"].customer_id: row for row in site.rows()}
    assert (rows["cus_1"].org_id, rows["cus_1"].matched_by, rows["cus_1"].action) == (org_id, "marks", "adopt")
    assert "this database wrote and does not have" in rows["cus_2"].reason
    assert "another billing-sync manages it" in rows["cus_3"].reason


def test_a_run_that_was_killed_between_any_two_steps_goes_on_and_proposes_the_same(site: DiscoverySite) -> None:
    site.fill(250)
    whole = described(site.rows())
    requests = site.requests()
    assert len(whole) == 250
    steps = 0
    while True:
        steps += 1
        run = site.interrupted(1)
        if run.stage is None:
            break
    assert steps > 10
    assert described(site.rows()) == whole
    assert site.requests() == requests + 1  # each process reads a plan of Lago's anew


def test_a_plan_that_changed_since_a_run_was_killed_counts_for_all_rows(site: DiscoverySite) -> None:
    site.fill(450)
    run = site.interrupted(1)
    while run.stage != "matching" or run.processed == 0:
        run = site.interrupted(1)
    site.world.set_charging_provider("stripe")
    assert {row.action for row in site.rows()} == {"conflict"}


def test_a_step_that_died_before_it_was_stored_is_made_again(site: DiscoverySite) -> None:
    site.fill(120)
    whole = described(site.rows())
    killed = site.interrupted(3)
    killed.lease_token = "somebody else's"
    with pytest.raises(DiscoveryTakenOverError):
        site.new_discovery().step(killed)
    assert described(site.rows()) == whole


def test_a_process_whose_run_was_taken_over_stops(site: DiscoverySite) -> None:
    site.fill(3)
    first = site.interrupted(1)
    site.interrupted(1)
    with pytest.raises(DiscoveryTakenOverError, match="run it again to continue"):
        site.new_discovery().step(first)


def test_calls_for_a_customer_are_a_few_hundredths(site: DiscoverySite) -> None:
    site.fill(500)
    site.rows()
    # Five pages and an empty one at Stripe, three and three and one at Lago, a plan, and both accounts.
    assert site.requests() <= 500 * 0.04


def test_nothing_of_what_was_listed_stays_when_the_table_is_written(site: DiscoverySite) -> None:
    site.fill(5)
    assert len(site.rows()) == 5
    with site.world.database.read() as session:
        for table in (DiscoveryRecord, DiscoveryListing, DiscoveryProposal):
            assert session.scalar(select(func.count()).select_from(table)) == 0


def test_what_was_listed_long_ago_is_listed_again(site: DiscoverySite) -> None:
    site.fill(5)
    site.interrupted(8)
    site.world.now += timedelta(hours=7)
    assert site.interrupted(0).stage == "organizations"


def test_of_a_run_that_was_left_nothing_stays_in_the_database(site: DiscoverySite) -> None:
    rows = [{"id": f"cus_{n}", "name": f"Acme {n}"} for n in range(1_100)]
    site.world.sandbox.preload_stripe_customers(rows)
    site.new_discovery().run()
    site.world.advance_time(hours=6)
    assert sweep(site) == (1, 1_100)
    site.world.advance_time(hours=1)
    assert sweep(site) == (1, 100)
    assert sweep(site) == (0, 0)
    assert sweep(site) == (0, 0)


def sweep(site: DiscoverySite) -> tuple[int, ...]:
    """The runs and the proposals that are left."""
    with site.world.database.write() as session:
        discovery_store.delete_expired(session, site.world.now)
        counts = [select(func.count()).select_from(each) for each in (DiscoveryRecord, DiscoveryProposal)]
        return tuple(session.scalar(each) or 0 for each in counts)


def test_a_key_of_another_account_reads_nothing(site: DiscoverySite) -> None:
    site.harness.stripe_customer()
    site.world.reconcile_until_idle(site.world.create())
    with site.world.database.write() as session:
        session.get_one(ProviderStatus, "stripe").account_id = "acct_another"
    with pytest.raises(WrongAccountError):
        site.new_discovery().run()


def test_one_payer_of_very_many_customers_is_a_conflict_of_these_alone(site: DiscoverySite) -> None:
    site.fill(20)
    site.harness.stripe_customer("cus_all")
    for number in range(130):
        site.harness.lago_customer(f"shared-{number}", payer="cus_all", name=f"A {number}", email=None)
    rows = site.rows()
    conflicts = [row for row in rows if row.action == "conflict"]
    assert {row.action for row in rows} == {"adopt", "conflict"}
    assert len(rows) - len(conflicts) == 20
    assert {row.sides["lago"].external_customer_id for row in conflicts if "lago" in row.sides} == {
        f"shared-{number}" for number in range(130)
    }
    assert all(row.reason.startswith("more than 50 customers") for row in conflicts)


def test_marks_on_very_many_customers_are_a_conflict_of_these_alone(site: DiscoverySite) -> None:
    site.fill(3)
    org_id = site.world.create()
    with site.world.database.read() as session:
        database_id = session.get_one(ProviderStatus, "stripe").database_id
    marks = {"billing_sync_org_id": org_id, "billing_sync_database_id": database_id}
    site.world.sandbox.preload_stripe_customers(
        [{"id": f"cus_m{number}", "name": f"M {number}", "metadata": marks} for number in range(60)]
    )
    rows = site.rows()
    assert len(rows) == 63
    conflicts = [row for row in rows if row.action == "conflict"]
    assert {row.sides["stripe"].customer_id for row in conflicts} == {f"cus_m{number}" for number in range(60)}
    assert all(row.reason.startswith("more than 50 customers") for row in conflicts)


def paying_stripe_customer(site: DiscoverySite, **fields: Any) -> str:  # noqa: ANN401 - JSON
    """It pays 49 USD, and nothing proves whose it is."""
    site.world.set_charging_provider("stripe")
    sandbox, customer = site.world.sandbox, site.harness.stripe_customer(**fields)
    product = sandbox.create("stripe", "products", name="Professional")
    price = {"product": product["id"], "unit_amount": 4900, "currency": "usd", "recurring": {"interval": "month"}}
    sandbox.preload_stripe_subscription(customer, str(sandbox.preload_stripe_prices([price])[0]["id"]))
    return customer


@pytest.mark.parametrize("likeness", ["name", "address", "metadata"])
def test_an_organization_that_may_pay_already_gets_no_second_subscription_before_that_is_decided(
    site: DiscoverySite, likeness: str
) -> None:
    world = site.world
    world.management = "observe"
    org_id, other = world.create("Acme"), world.create("Other", email=None)
    fields: dict[str, dict[str, Any]] = {
        "name": {"name": "ACME"},
        "address": {"email": "ap@acme.test"},
        "metadata": {"metadata": {"org_id": org_id}},
    }
    paying_stripe_customer(site, **fields[likeness])
    discovery = site.new_discovery()
    run = discovery.run()
    (row,) = discovery.rows(run)
    assert (row.action, row.org_id, run.observed) == ("conflict", None, [org_id])
    world.management = "manage"
    world.sandbox.reset_calls()
    world.reconcile_until_idle(org_id)
    assert site.harness.writes() == []
    assert len(world.stripe_objects("customers")) == 1
    world.reconcile_until_idle(other)
    assert len(world.stripe_objects("customers")) == 2
    world.set_mode(org_id, "manage")  # the operator decided that the customer is somebody else's
    assert site.new_discovery().run().observed == []
    world.reconcile_until_idle(org_id)
    assert len(world.stripe_objects("customers")) == 3


def test_an_organization_behind_many_customers_with_its_address_is_observed_all_the_same(site: DiscoverySite) -> None:
    org_id = site.world.create("Acme")
    site.world.sandbox.preload_stripe_customers(
        [{"id": f"cus_a{number}", "name": f"A {number}", "email": "ap@acme.test"} for number in range(12)]
    )
    paying_stripe_customer(site, name="Payer", email="ap@acme.test")
    discovery = site.new_discovery()
    run = discovery.run()
    (paying,) = [row for row in discovery.rows(run) if row.action != "skip"]
    assert (paying.action, paying.org_id) == ("conflict", None)
    assert run.observed == [org_id]


def test_organizations_that_strong_keys_of_a_conflict_name_are_observed(site: DiscoverySite) -> None:
    world = site.world
    first, second = world.create("First", email=None), world.create("Second", email=None)
    with world.database.read() as session:
        database_id = session.get_one(ProviderStatus, "stripe").database_id
    marks = {"billing_sync_org_id": first, "billing_sync_database_id": database_id}
    customer = paying_stripe_customer(site, name="Somebody", email="some@body.test", metadata=marks)
    site.harness.lago_customer(second, payer=customer, plan="professional", name="Else", email=None)
    discovery = site.new_discovery()
    run = discovery.run()
    assert {row.action for row in discovery.rows(run)} == {"conflict"}
    assert sorted(run.observed) == sorted([first, second])


def test_what_has_a_customer_or_was_found_by_a_strong_key_keeps_its_mode(site: DiscoverySite) -> None:
    world = site.world
    managed, found = world.create("Acme"), world.create("Found", email="found@acme.test")
    world.reconcile_until_idle(managed)
    paying_stripe_customer(site, name="ACME", email="found@acme.test")
    site.harness.lago_customer(found, payer=None, plan="professional", name="Found", email=None)
    discovery = site.new_discovery()
    run = discovery.run()
    assert sorted((row.action, row.org_id) for row in discovery.rows(run)) == [("adopt", found), ("conflict", None)]
    assert run.suggested == {managed, found}
    assert run.observed == []
    assert {world.organization(each).management for each in (managed, found)} == {None}


def test_a_run_that_was_killed_before_its_end_still_finds_who_may_pay_already(site: DiscoverySite) -> None:
    org_id = site.world.create("Acme")
    paying_stripe_customer(site, name="Acme")
    steps = 1
    while site.interrupted(steps).stage is not None:
        steps += 1
    assert site.world.organization(org_id).management is None
    assert site.new_discovery().run().observed == [org_id]
    assert site.world.organization(org_id).management == "observe"
