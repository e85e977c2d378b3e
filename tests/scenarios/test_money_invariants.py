"""Whatever happens in whatever order, money stays right: one charger, one customer, nothing of others ended or joined.

A machine tells stories: changes, rounds in any order, turns that are overtaken or die, faults, clocks that jump, and
people at the dashboards. After each step both billers are read from outside (``books``). At the end all faults are
over: the sweep alone must bring everything home or park it with a sentence, and one plan must name what people did.

A longer run, another one each time: ``pytest --hypothesis-profile=long tests/scenarios/test_money_invariants.py``.
"""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Final

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from core.catalog.plans import Catalog
from core.compare.findings import DriftItem
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.drift.conflict_resolver import CannotResolveError
from core.drift.repairer import ChangedSinceReportError
from core.events.event_types import ChangeContext
from core.flow_control import circuit_breaker
from core.inbox import provider_webhooks
from core.inbox.provider_webhooks import ParsedWebhook
from core.organizations import commands as organization_commands
from core.organizations import links
from core.ports.errors import ProviderError
from core.ports.spec import PROVIDERS, Provider
from core.reconcile import attempt, backoff, commands, due_links
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tests.support.dashboard_edits import DEEDS, Hands
from tests.support.drift_harness import DriftHarness, conflict_resolver_of
from tests.support.provider_books import ActionHistory, Books
from tests.support.sync_world import WorkerDiedError, do_nothing, kill_worker, open_world

pytestmark = pytest.mark.slow

LONG: Final = settings.get_current_profile_name() == "long"
# From its eleventh on hypothesis varies the stories it has; ten of several seeds each are forty different ones.
SEEDS: Final = [1] if LONG else [1, 2, 3, 4]
SHORT: Final = settings(
    max_examples=10,
    stateful_step_count=25,
    database=None,
    phases=[Phase.generate],  # a story can be read as it is; to shorten one takes minutes
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

# Far from today, so that no story depends on the day on which it is told.
BEGINNING: Final = datetime(2031, 3, 10, 12, tzinfo=UTC)
MOST_ORGANIZATIONS: Final = 4
UNKNOWN: Final = "legacy"
LAYOUTS: Final = [("starter", "enterprise"), (), ("professional", "enterprise"), ("founders_friend", "starter")]
"""The tiers that Stripe charges; Lago charges the others."""

CHANGES: Final = [
    *("Globex", "Initech", "pay@acme.test", "bills@acme.test"),
    *("active", "suspended", "deleted", "retry", "ours", "theirs", "lose the plan"),
]
THENS: Final = ["nothing", "stripe", "lago", "both", "both, after a day again", *["until nothing is left"] * 3]
REPORTERS: Final[list[tuple[Provider, ...]]] = [(), ("stripe",), ("lago",), PROVIDERS]
SAME_DAY: Final = timedelta(minutes=4)
SALES: Final = ["sell_beside_in_stripe", "sell_beside_in_lago"]

Trouble = tuple[Provider, str, str, int] | None
"""Biller, operation, kind of fault, and how often."""
OPERATIONS: Final[list[tuple[Provider, str]]] = [
    *(("stripe", "*"), ("stripe", "POST /v1/customers"), ("stripe", "POST /v1/subscriptions")),
    *(("stripe", "POST /v1/subscriptions/{id}"), ("stripe", "DELETE /v1/subscriptions/{id}")),
    *(("lago", "*"), ("lago", "POST /api/v1/customers"), ("lago", "POST /api/v1/subscriptions")),
]
CREATES: Final[list[tuple[Provider, str]]] = [
    *(("stripe", "POST /v1/customers"), ("stripe", "POST /v1/subscriptions")),
    *(("lago", "POST /api/v1/customers"), ("lago", "POST /api/v1/subscriptions")),
]
LOST: Final = ["lost_answer", "500_after", "500_stored"]
FAULTS: Final = [*LOST, *LOST, "500_before", "429", "reset", "hang", "html_502", "401"]
MOMENTS: Final = ["before_customer", "after_customer", "before_subscription", "after_subscription", "after_end"]
JUMPS: Final[list[dict[str, float]]] = [{"minutes": 5}, {"hours": 6}, {"hours": 25}, {"days": 32}]
# Why a link may wait for a person though nobody touched anything at the dashboards.
OUR_OWN_REASONS: Final = (
    *(
        "unlink the payment provider",
        "that subscription has ended",
        "neither provider can schedule",
        "is not in the catalog",
    ),
)
# Longer than any link waits by itself, so that each sweep finds whatever is left.
SWEEP_INTERVAL_SECONDS: Final = backoff.MAX_BACKOFF_SECONDS + links.SWEEP_GRACE.total_seconds()
MOST_SWEEPS: Final = 30
MAX_RECONCILES_EACH: Final = 12
LEASE_SECONDS: Final = attempt.LINK_LEASE.total_seconds() + 1
BURST_COOLDOWN_SECONDS: Final = backoff.COOLDOWN_AFTER_CONCURRENT_CHANGE.total_seconds() + 0.1

TIERS: Final = ["founders_friend", "starter", "professional", "enterprise"]
numbers = st.sampled_from([0, 0, 0, 1, 1, 2, 3])
troubles = st.none() | st.tuples(st.sampled_from(OPERATIONS), st.sampled_from(FAULTS), st.integers(1, 2)).map(
    lambda drawn: (*drawn[0], *drawn[1:])
)
tiers = st.sampled_from(TIERS)
providers = st.sampled_from(PROVIDERS)
thens = st.sampled_from(THENS)


@dataclass(frozen=True)
class Stage:
    """What every story of a run begins with. ``empty``: a database to copy."""

    empty: Path
    sandbox: SandboxClient
    url: str
    plans: Catalog


class MoneyStateMachine(RuleBasedStateMachine):
    stage: ClassVar[Stage]

    def __init__(self) -> None:
        super().__init__()
        self._folder = TemporaryDirectory()
        file = Path(self._folder.name) / "story.db"
        shutil.copy(self.stage.empty, file)
        sandbox = self.stage.sandbox
        sandbox.reset()
        sandbox.settings(limits=False)
        sandbox.set_clock(BEGINNING)
        self.world = open_world(Database(f"sqlite:///{file}"), sandbox, self.stage.plans, self.stage.url)
        self.world.now = BEGINNING
        self.history = ActionHistory()
        self.hands = Hands(world=self.world, history=self.history)
        self.org_ids: list[str] = []
        self.conflicts: dict[tuple[str, str], tuple[datetime, object]] = {}
        self.webhooks = itertools.count()

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self._end()
        finally:
            for provider in self.world.providers.values():
                provider.close()
            self.world.database.close()
            self._folder.cleanup()

    @initialize(charged_by_stripe=st.sampled_from(LAYOUTS), first=tiers, second=tiers, then=thens)
    def begin(self, charged_by_stripe: tuple[str, ...], first: str, second: str, then: str) -> None:
        """The first organization is at home; how the second comes there differs."""
        self.world.set_charging_provider("stripe")
        self.world.set_charging_provider("lago", *[tier for tier in TIERS if tier not in charged_by_stripe])
        self._then(self._create(first), "until nothing is left")
        self._then(self._create(second), then)

    # What is asked of us, what goes wrong at the billers about it, and what workers do next.

    @precondition(lambda self: len(self.org_ids) < MOST_ORGANIZATIONS)
    @rule(tier=tiers, trouble=troubles, then=thens)
    def create(self, tier: str, trouble: Trouble, then: str) -> None:
        self._make(trouble)
        self._then(self._create(tier), then)

    @precondition(lambda self: len(self.org_ids) < MOST_ORGANIZATIONS)
    @rule(
        tier=tiers,
        operation=st.sampled_from(CREATES),
        kind=st.sampled_from(LOST),
        change=st.sampled_from(CHANGES),
        by=st.sampled_from(JUMPS),
        then=thens,
    )
    def lose_a_create(  # noqa: PLR0913, PLR0917 - what is lost, and what comes before it is tried again
        self, tier: str, operation: tuple[Provider, str], kind: str, change: str, by: dict[str, float], then: str
    ) -> None:
        self._make((*operation, kind, 1))
        org_id = self._create(tier)
        self._then(org_id, "both")
        self._change(org_id, change)
        self.world.advance_time(**by)
        self._then(org_id, then)

    @rule(number=numbers, tier=tiers, trouble=troubles, then=thens)
    def change_plan(self, number: int, tier: str, trouble: Trouble, then: str) -> None:
        """Up, down, or back."""
        self._make(trouble)
        self._change_plan(self._org(number), tier)
        self._then(self._org(number), then)

    @rule(number=numbers, change=st.sampled_from(CHANGES), trouble=troubles, then=thens)
    def change(self, number: int, change: str, trouble: Trouble, then: str) -> None:
        self._make(trouble)
        self._change(self._org(number), change)
        self._then(self._org(number), then)

    @rule(
        number=numbers,
        provider=providers,
        tier=tiers,
        change=st.sampled_from(CHANGES),
        moment=st.sampled_from(MOMENTS),
        happens=st.sampled_from(["die", "stale", "the other biller", "change", "plan"]),
        then=thens,
    )
    def change_during_attempt(  # noqa: PLR0913, PLR0917 - a turn, what it is about, and what comes in between
        self, number: int, provider: Provider, tier: str, change: str, moment: str, happens: str, then: str
    ) -> None:
        org_id = self._org(number)
        other: Provider = "lago" if provider == "stripe" else "stripe"
        meanwhile: dict[str, Callable[[], object]] = {
            "die": kill_worker,
            "stale": lambda: self._make_stale(org_id, provider, change),
            "the other biller": lambda: self.world.run(org_id, other),
            "change": lambda: self._change(org_id, change),
            "plan": lambda: self._change_plan(org_id, tier),
        }
        if happens == "plan":
            self._change(org_id, change)
        else:
            self._change_plan(org_id, tier)
        self.world.advance_time(seconds=BURST_COOLDOWN_SECONDS)
        setattr(self.world.providers[provider], moment, meanwhile[happens])
        try:
            self.world.run(org_id, provider)
        except WorkerDiedError:
            self.world.advance_time(seconds=LEASE_SECONDS)
        finally:
            setattr(self.world.providers[provider], moment, do_nothing)
        self._then(org_id, then)

    def _make_stale(self, org_id: str, provider: Provider, change: str) -> None:
        """The turn is held up past its lease; there is a change, and another turn has its way meanwhile."""
        self.world.advance_time(seconds=LEASE_SECONDS)
        self._change(org_id, change)
        self.world.run(org_id, provider)

    @rule(by=st.sampled_from(JUMPS), number=numbers, then=thens)
    def pass_time(self, by: dict[str, float], number: int, then: str) -> None:
        self.world.advance_time(**by)
        self._sweep()
        self._then(self._org(number), then)

    # What people do.

    @rule(
        number=numbers,
        deed=st.sampled_from(sorted(DEEDS)),
        tier=tiers,
        reported_by=st.sampled_from(REPORTERS),
        then=thens,
    )
    def edit_by_hand(self, number: int, deed: str, tier: str, reported_by: tuple[Provider, ...], then: str) -> None:
        """``reported_by``: the providers whose webhooks arrive."""
        org_id = self._org(number)
        self.conflicts.clear()
        self.hands.do(deed, org_id, tier)
        for provider in reported_by:
            self._receive_webhook(org_id, provider)
        self._then(org_id, then)

    @rule(number=numbers, provider=providers, then=thens)
    def receive_webhook(self, number: int, provider: Provider, then: str) -> None:
        self._receive_webhook(self._org(number), provider)
        self._then(self._org(number), then)

    @rule(number=numbers, deed=st.sampled_from(SALES), tier=tiers, next_tier=tiers, way=st.booleans(), then=thens)
    def sell_by_hand(  # noqa: PLR0913 - what they sell, and what comes after it
        self, number: int, deed: str, tier: str, next_tier: str, *, way: bool, then: str
    ) -> None:
        """Beside ours, or before there is one of ours. ``way``: they make it for a plan that moves to Stripe."""
        self.conflicts.clear()
        self.hands.do(deed, self._org(number), tier)
        self._change_plan(self._org(number), next_tier)
        if way:
            self.hands.do("have_lago_charge_nobody", self._org(number), tier)
        self._then(self._org(number), then)

    @rule(apply=st.booleans())
    def check_drift(self, *, apply: bool) -> None:
        harness = self._drift_harness()
        try:
            report = harness.check()
            if apply:
                harness.repair(report)
        except (ProviderError, ChangedSinceReportError):
            return

    @invariant()
    def money_is_right(self) -> None:
        self._books().check()
        sold_by_hand = {link.subscription_id for link in self._links()} & set(self.history.rogues)
        assert not sold_by_hand, f"{sold_by_hand} were made by hand, and taken for ours"

    @invariant()
    def what_is_on_hold_is_as_somebody_left_it(self) -> None:
        """While a link is on hold for a conflict, nothing of it changes at its provider, whatever else happens."""
        on_hold = {(link.org_id, link.provider) for link in self._links() if link.state == "on_hold"}
        known, self.conflicts = self.conflicts, {}
        for org_id, provider in sorted(on_hold):
            objects = self._provider_objects(org_id, provider)
            since, before = known.get((org_id, provider), (self.world.now, objects))
            if self.world.now - since > SAME_DAY:
                since, before = self.world.now, objects  # a scheduled change of the provider may have happened
            assert objects == before, f"{org_id} at {provider} is on hold, and was changed"
            self.conflicts[org_id, provider] = since, before

    # The end.

    def _end(self) -> None:
        self.world.sandbox.clear_faults()
        for _ in range(MOST_SWEEPS):
            self.world.advance_time(seconds=SWEEP_INTERVAL_SECONDS)
            self._sweep()
            self.money_is_right()
            if not self._behind():
                break
        assert not self._behind(), f"not settled after {MOST_SWEEPS} sweeps: {self._behind()}"
        for link in self._links():
            assert link.state == "active" or (link.error_message or "").strip(), f"{link.org_id} is parked, not why"
        harness = self._drift_harness()
        report = harness.check()
        assert (report.counts.in_flux, report.counts.excluded_providers) == (0, [])
        drifts = harness.drifts(report)
        self._all_rogues_are_found(drifts)
        for org_id in self.org_ids:
            found = next((each for each in drifts if each.org_id == org_id), None)
            self._what_is_not_found_is_right(org_id, found)
        harness.repair(report)
        self.money_is_right()
        assert harness.check().counts.repairable == 0, "what was repaired is not right yet"

    def _all_rogues_are_found(self, drifts: list[DriftItem]) -> None:
        found = {finding.object_id for drift in drifts for finding in drift.findings}
        assert found >= set(self._books().rogues_alive()), "a subscription that people made is not told"

    def _what_is_not_found_is_right(self, org_id: str, drift: DriftItem | None) -> None:
        organization = self.world.organization(org_id)
        stripe, lago = (self.world.link(org_id, provider) for provider in PROVIDERS)
        parked = [link for link in (stripe, lago) if link.state != "active"]
        if org_id not in self.history.touched:
            assert drift is None, f"nobody touched {org_id}: {drift}"
            for link in parked:
                assert any(each in str(link.error_message) for each in OUR_OWN_REASONS), link.error_message
        if drift is not None or parked:
            return
        books = self._books()
        ours, theirs = books.stripe_customer(stripe.customer_id), books.lago_customer(org_id)
        if organization.status == "deleted":
            assert (books.stripe_subscriptions(org_id), books.lago_subscriptions(org_id)) == ([], [])
            return
        assert ours is not None
        assert theirs is not None
        assert ours["metadata"].get("org_id") == theirs["external_id"] == org_id
        assert ours["name"] == theirs["name"] == organization.name
        assert organization.billing_email in {None, ours["email"]}
        assert organization.billing_email in {None, theirs["email"]}
        plan = self.world.catalog.plan(organization.plan_tier)
        assert books.payer(org_id) == (stripe.customer_id if plan.charged_by == "lago" else None)
        assert len(books.stripe_subscriptions(org_id)) == (1 if plan.charged_by == "stripe" else 0)
        (active,) = [each for each in books.lago_subscriptions(org_id) if each["status"] == "active"]
        if plan.charged_by == "lago":
            pending = organization.pending_plan_tier
            following = self.world.catalog.plan(pending).lago_plan_code if pending else None
            assert (active["plan_code"], active["next_plan_code"]) == (plan.lago_plan_code, following)

    # The machinery.

    def _org(self, number: int) -> str:
        return self.org_ids[number % len(self.org_ids)]

    def _create(self, tier: str) -> str:
        org_id = self.world.create(f"Acme {len(self.org_ids)}", tier)
        self.org_ids.append(org_id)
        self.history.asked[org_id].add(tier)
        return org_id

    def _change_plan(self, org_id: str, tier: str) -> None:
        self.history.asked[org_id].add(tier)
        self.history.plan_changes[org_id] += 1
        self.world.change_plan(org_id, tier)

    def _change(self, org_id: str, change: str) -> None:
        match change:
            case "Globex" | "Initech" as name:
                self.world.rename(org_id, f"{name} {self.org_ids.index(org_id)}")
            case "active" | "suspended" | "deleted" as status:
                if status == "deleted":
                    self.history.deleted.add(org_id)
                self.world.change_status(org_id, status)
            case "retry":
                self.world.change(org_id, commands.retry)
            case "ours":
                self.world.keep_ours(org_id)
            case "theirs":
                self._take_theirs(org_id)
            case "lose the plan":
                self.history.touched.add(org_id)
                self.history.plan_changes[org_id] += 1
                self.world.change(org_id, _lose_the_plan)
            case email:
                self.world.change(
                    org_id,
                    lambda change, it: organization_commands.change_billing_details(
                        change, it, self.world.catalog, billing_email=email
                    ),
                )

    def _receive_webhook(self, org_id: str, provider: Provider) -> None:
        webhook = ParsedWebhook(
            provider=provider,
            id=f"evt_{next(self.webhooks)}",
            type="any",
            effect="check",
            customer_id=self.world.link(org_id, provider).customer_id,
            org_id=org_id if provider == "lago" else None,
        )
        with self.world.database.write() as session:
            provider_webhooks.store(session, webhook, self.world.now)
        provider_webhooks.process(self.world.database, self.world.clock)

    def _provider_objects(self, org_id: str, provider: str) -> object:
        """What the provider has of the organization, without what time changes."""
        state = self.world.sandbox.state()[provider]
        if provider == "lago":
            customers = [each for each in state["customers"] if each["external_id"] == org_id]
            subscriptions = [each for each in state["subscriptions"] if each["external_customer_id"] == org_id]
            return (
                [(each["name"], each["email"], str(each["billing_configuration"])) for each in customers],
                [(each["lago_id"], each["status"], each["plan_code"]) for each in subscriptions],
            )
        customer_id = self.world.link(org_id, "stripe").customer_id
        customers = [each for each in state["customers"] if each["id"] == customer_id]
        subscriptions = [each for each in state["subscriptions"] if each["customer"] == customer_id]
        return (
            [(each.get("name"), each.get("email"), each.get("deleted")) for each in customers],
            [(each["id"], each["status"], each["items"]["data"][0]["price"]["id"]) for each in subscriptions],
        )

    def _take_theirs(self, org_id: str) -> None:
        self.history.plan_changes[org_id] += 1
        resolver = conflict_resolver_of(self.world)
        for provider in PROVIDERS:
            with suppress(CannotResolveError, ProviderError):
                resolver.take_theirs(org_id, provider)

    def _make(self, trouble: Trouble) -> None:
        if trouble is not None:
            provider, operation, kind, times = trouble
            self.world.sandbox.add_fault(provider, operation, kind, times=times, seconds=0.02)

    def _then(self, org_id: str, then: str) -> None:
        """What workers do next about it, if anything."""
        match then:
            case "stripe" | "lago" as provider:
                self.world.run(org_id, provider)
            case "both":
                for each in PROVIDERS:
                    self.world.run(org_id, each)
            case "both, after a day again":
                for hours in (25, 0):
                    for each in PROVIDERS:
                        self.world.run(org_id, each)
                    self.world.advance_time(hours=hours)
            case "until nothing is left":
                self._reconcile_until_idle(org_id)

    def _reconcile_until_idle(self, org_id: str) -> None:
        """As the broker does: each outcome is followed; the waits pass."""
        waiting: list[Provider] = [*PROVIDERS]
        self.world.advance_time(seconds=BURST_COOLDOWN_SECONDS)
        for _ in range(MAX_RECONCILES_EACH):
            if not waiting:
                return
            provider = waiting.pop(0)
            result = self.world.run(org_id, provider)
            waiting += [other for other in result.also_requeue if other not in waiting]
            if result.requeue_after is not None:
                self.world.advance_time(seconds=result.requeue_after + 0.01)
                waiting.append(provider)

    def _sweep(self) -> None:
        due_links.recheck_due_downgrades(self.world.database, 100, self.world.now)
        for provider in PROVIDERS:
            with self.world.database.write() as session:
                room = circuit_breaker.free_capacity(session, provider, 100, self.world.now)
                dispatched = due_links.dispatch(session, provider, room, self.world.now)
            for org_id in dispatched:
                self.world.run(org_id, provider)

    def _behind(self) -> list[str]:
        return [
            f"{link.org_id} at {link.provider}: {link.error_message}"
            for link in self._links()
            if link.state == "active" and (link.applied_version < link.desired_version or link.intent is not None)
        ]

    def _links(self) -> list[BillingLink]:
        return [self.world.link(org_id, provider) for org_id in self.org_ids for provider in PROVIDERS]

    def _books(self) -> Books:
        return Books(state=self.world.sandbox.state(), history=self.history, catalog=self.world.catalog)

    def _drift_harness(self) -> DriftHarness:
        return DriftHarness(self.world)


def _lose_the_plan(change: ChangeContext, organization: Organization) -> None:
    """As after an import, or with a catalog that lost a table."""
    organization.plan_tier, organization.pending_plan_tier = UNKNOWN, None
    links.mark_for_sync(change, organization)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    file = tmp_path / "empty.db"
    database = Database(f"sqlite:///{file}")
    database.upgrade()
    database.close()
    return file


@pytest.mark.timeout(0 if LONG else 600)
@pytest.mark.parametrize("number", SEEDS)
def test_money_is_right_after_each_step_of_any_story(
    number: int, empty: Path, sandbox: SandboxClient, plans: Catalog, sandbox_server: Sandbox
) -> None:
    class StagedStateMachine(MoneyStateMachine):
        stage = Stage(empty, sandbox, sandbox_server.url, plans)

    if LONG:
        run_state_machine_as_test(StagedStateMachine, settings=settings())
    else:
        run_state_machine_as_test(seed(number)(StagedStateMachine), settings=SHORT)
