"""A restricted key with exactly the listed rights does everything. Each right that it lacks is named.

The sandbox refuses by its own table, which is written from Stripe's documents (``sandbox.stripe_api.permissions``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import providers.stripe
from core.catalog import publishing
from core.flow_control import circuit_breaker
from core.ports.errors import ProviderError
from core.ports.quotes import PlanChangeQuery
from core.ports.spec import SubscriptionSpec
from core.reconcile import commands
from core.reconcile.account_guard import AccountGuard, WrongAccountError
from providers.stripe.provider import StripeProvider
from providers.stripe.rights import STRIPE_RIGHTS, StripeRight
from sandbox.server import Sandbox
from sandbox.stripe_api.permissions import OPERATION_PERMISSIONS
from tests.support.drift_harness import DriftHarness
from tests.support.sync_world import SyncWorld

pytestmark = pytest.mark.slow  # many cases of one kind

KEY = "rk_test_story_1234"
ALL = frozenset(each.id for each in STRIPE_RIGHTS)
NEEDED = frozenset(each.id for each in STRIPE_RIGHTS if each.affects != "nothing")


@dataclass
class RestrictedKeyStory:
    """What an operator and users do, with a key of these rights. Plans are on sale before it begins."""

    world: SyncWorld
    url: str
    rights: frozenset[str]
    org_ids: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.world.set_charging_provider("stripe")
        self.world.sandbox.settings(restricted_keys={KEY: sorted(self.rights)})
        self.stripe = StripeProvider(KEY, self.url, ending=self.world.catalog.ending, clock=self.world.clock)
        self.world.providers["stripe"].connect_again(self.stripe)
        self.world.account_guard = AccountGuard(
            database=self.world.database, providers=self.world.providers, clock=self.world.clock
        )
        self.refusals += [str(error) for error in self.world.account_guard.start()]

    def run(self) -> None:
        self._push_plans()
        leaving = self._live()
        self._change(leaving, lambda: self.world.change_status(leaving, "deleted"))
        self._create_with_a_lost_response()
        self._preview(self._live("Beta"))
        self.read_who_is_there()

    def _push_plans(self) -> None:
        tiers = {
            tier: plan.model_copy(update={"stripe_lookup_key": f"{plan.stripe_lookup_key}_new"})
            for tier, plan in self.world.catalog.plans.items()
        }
        catalog = self.world.catalog.model_copy(update={"plans": tiers})
        self.refusals += [each.problem for each in publishing.publish(catalog, [self.stripe]) if each.problem]

    def _live(self, name: str = "Acme") -> str:
        org_id = self.world.create(name, "professional")
        self.org_ids.append(org_id)
        self.reconcile(org_id)
        for change in (
            lambda: self.world.rename(org_id, f"{name} GmbH"),
            lambda: self.world.change_plan(org_id, "enterprise"),
            lambda: self.world.change_plan(org_id, "starter"),
            lambda: self.world.change_status(org_id, "suspended"),
            lambda: self.world.change_status(org_id, "active"),
        ):
            self._change(org_id, change)
        return org_id

    def _create_with_a_lost_response(self) -> None:
        """Stripe saved a failure under the key of the create, so its events are read."""
        self.world.sandbox.add_fault("stripe", "POST /v1/customers", "500_after")
        org_id = self.world.create("Gamma", "starter")
        self.org_ids.append(org_id)
        self.world.run(org_id, "stripe")
        self.world.advance_time(minutes=10)
        self.reconcile(org_id)
        self.world.sandbox.clear_faults()

    def _preview(self, org_id: str) -> None:
        link = self.world.link(org_id, "stripe")
        plan = self.world.catalog.plan("enterprise")
        spec = SubscriptionSpec(org_id=org_id, customer_id=str(link.customer_id), plan_code=plan.code("stripe"))
        query = PlanChangeQuery(
            spec=spec, subscription_id=link.subscription_id, list_price=plan.amount, currency=plan.currency
        )
        try:
            self.stripe.invoice_previewer.quote(query)
        except ProviderError as error:
            self.refusals.append(error.message)

    def read_who_is_there(self) -> None:
        """As ``adopt discover`` and ``plans discover`` do."""
        for read in (
            self.stripe.inventory.customers,
            self.stripe.inventory.subscriptions,
            self.stripe.inventory.prices,
        ):
            try:
                read(None)
            except ProviderError as error:
                self.refusals.append(error.message)

    def _change(self, org_id: str, change: Callable[[], object]) -> None:
        change()
        self.reconcile(org_id)

    def reconcile(self, org_id: str) -> None:
        """Until it is in sync, or nothing more happens without an operator."""
        for _ in range(12):
            self.world.run(org_id, "stripe")
            self.world.run(org_id, "lago")
            if self.world.is_in_sync(org_id) or self.world.link(org_id, "stripe").state == "parked" or self.breaker():
                break
            self.world.wait(31)
        link = self.world.link(org_id, "stripe")
        self.refusals += [link.error_message] if link.error_message else []
        self.refusals += self.breaker()

    def breaker(self) -> list[str]:
        with self.world.database.read() as session:
            return [each.message for each in circuit_breaker.open_breakers(session).values()]

    def parked(self) -> list[str | None]:
        links = [self.world.link(org_id, "stripe") for org_id in self.org_ids]
        return [link.error_code for link in links if link.state == "parked"]

    def grant(self, rights: frozenset[str]) -> None:
        """As an operator does who granted the rights: a restart of the workers, and a retry of what is parked."""
        self.world.sandbox.settings(restricted_keys={KEY: sorted(rights)})
        self.world.account_guard.start()
        for org_id in self.org_ids:
            if self.world.link(org_id, "stripe").state == "parked":
                self.world.change(org_id, commands.retry)
            self.world.wait(700)
            self.reconcile(org_id)


Open = Callable[[frozenset[str]], RestrictedKeyStory]


@pytest.fixture
def story(world: SyncWorld, sandbox_server: Sandbox) -> Open:
    return lambda rights: RestrictedKeyStory(world, sandbox_server.url, rights)


def without(right: StripeRight) -> list[frozenset[str]]:
    """A key that has nothing of the right, and one that may only read."""
    reading = right.id.replace("_write", "_read")
    return [ALL - {right.id}, *([ALL - {right.id} | {reading}] if reading != right.id else [])]


LACKING = [
    pytest.param(right, rights, id=f"{right.id}-{'absent' if number == 0 else 'only-reading'}")
    for right in STRIPE_RIGHTS
    for number, rights in enumerate(without(right))
    if right.affects != "nothing"
]


def test_the_listed_requests_are_those_that_are_sent() -> None:
    folder = Path(providers.stripe.__path__[0])
    sources = [each.read_text(encoding="utf-8") for each in folder.glob("*.py") if each.name != "rights.py"]
    operation = re.compile(r'"((?:GET|POST|DELETE) /v1/[a-z_/]*(?:\{id\}[a-z_/]*)?)"')
    sent = {each for source in sources for each in operation.findall(source)}
    sent_by_doctor = {"GET /v1/products", "GET /v1/coupons"}
    assert {each for right in STRIPE_RIGHTS for each in right.requests} == sent | sent_by_doctor


@pytest.mark.parametrize("request_", sorted({each for right in STRIPE_RIGHTS for each in right.requests}))
def test_each_request_is_listed_under_the_right_that_stripe_documents_for_it(request_: str) -> None:
    listed = {right.id for right in STRIPE_RIGHTS if request_ in right.requests}
    documented = {f"rak_{name}" for name in OPERATION_PERMISSIONS[request_]}
    assert listed & (documented | {each.replace("_read", "_write") for each in documented})


def test_with_the_needed_rights_everything_is_done_and_nothing_is_refused(
    story: Open, world: SyncWorld, drift_harness: DriftHarness
) -> None:
    whole = story(NEEDED)
    whole.run()
    assert whole.refusals == []
    assert all(world.is_in_sync(org_id) for org_id in whole.org_ids)
    notes = [each for each in world.sandbox.calls("stripe") if each.operation == "POST /v1/credit_notes"]
    assert {each.status for each in notes} == {200}
    world.advance_time(minutes=5)
    assert drift_harness.findings() == []
    assert {each.status for each in world.sandbox.calls("stripe") if each.operation == "GET /v1/account"} == {403}


@pytest.mark.parametrize(("right", "rights"), LACKING)
def test_a_right_that_is_missing_is_named_and_stops_what_the_list_says_until_it_is_granted(
    story: Open, world: SyncWorld, right: StripeRight, rights: frozenset[str]
) -> None:
    lacking = story(rights)
    lacking.run()
    assert any(right.id.rpartition("_")[0] in each for each in lacking.refusals), lacking.refusals
    assert bool(lacking.breaker()) == (right.affects == "all"), lacking.breaker()
    assert set(lacking.parked()) <= {"missing_permission"}
    assert KEY not in str(lacking.refusals)
    lacking.grant(ALL)
    assert lacking.breaker() == []
    assert all(world.is_in_sync(org_id) for org_id in lacking.org_ids)
    customers = [each for each in world.stripe_objects("customers") if not each.get("deleted")]
    assert len(customers) == len(lacking.org_ids)


def test_a_key_that_may_only_read_is_enough_to_discover_and_to_observe(story: Open, world: SyncWorld) -> None:
    synced = story(NEEDED)
    org_ids = [world.create(name, tier) for name, tier in (("Acme", "professional"), ("Beta", "enterprise"))]
    for org_id in org_ids:
        synced.reconcile(org_id)
    world.management = "observe"
    org_ids.append(world.create("Gamma", "starter"))
    world.change_plan(org_ids[0], "enterprise")
    world.change_plan(org_ids[1], "starter")
    reading = story(frozenset(each.id.replace("_write", "_read") for each in STRIPE_RIGHTS))
    reading.read_who_is_there()
    for org_id in org_ids:
        reading.reconcile(org_id)
        assert world.link(org_id, "stripe").state == "observed"
        assert world.observation(org_id, "stripe").problem is None
    assert reading.refusals == []


@pytest.mark.parametrize("right", [each for each in STRIPE_RIGHTS if each.affects == "nothing"])
def test_a_right_that_only_a_remark_needs_stops_nothing(story: Open, world: SyncWorld, right: StripeRight) -> None:
    lacking = story(ALL - {right.id})
    lacking.run()
    assert lacking.refusals == []
    assert all(world.is_in_sync(org_id) for org_id in lacking.org_ids)


def test_who_changed_what_is_left_out_of_a_drift_check_without_the_right_to_events(
    story: Open, world: SyncWorld, drift_harness: DriftHarness
) -> None:
    lacking = story(ALL - {"rak_event_read"})
    org_id = world.create()
    lacking.reconcile(org_id)
    world.advance_time(minutes=5)
    world.sandbox.patch("stripe", "customers", str(world.link(org_id, "stripe").customer_id), name="Other")
    (finding,) = drift_harness.findings()
    assert (finding.kind, finding.field) == ("renamed", "name")


def test_a_key_that_may_not_read_its_account_is_still_refused_for_another_account(
    story: Open, world: SyncWorld
) -> None:
    lacking = story(NEEDED)
    lacking.reconcile(world.create())
    world.sandbox.settings(stripe_account="acct_other")
    with pytest.raises(WrongAccountError, match="acct_other"):
        lacking.world.account_guard.start()


def test_an_account_that_stripe_does_not_name_is_said_at_the_start_with_the_right_and_nothing_is_sent(
    story: Open, world: SyncWorld
) -> None:
    lacking = story(ALL)
    sentence = (
        "The provided key does not have the required permissions. Having the 'rak_accounts_kyc_basic_read' permission"
    )
    body = json.dumps({"error": {"type": "invalid_request_error", "message": sentence}})
    world.sandbox.add_fault("stripe", "GET /v1/account", "status", times=0, status=403, body=body)
    guard = AccountGuard(database=world.database, providers=world.providers, clock=world.clock)
    (unread,) = guard.start()
    assert "could not read the account" in unread.message
    assert "permission rak_accounts_kyc_basic_read" in unread.message
    world.sandbox.reset_calls()
    lacking.reconcile(world.create())
    assert world.stripe_objects("customers") == []
