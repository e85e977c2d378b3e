"""One story of the money machine: what was asked of us, what workers did, and both providers as seen from outside.

Every step of a story ends with ``check``. ``settle`` and ``live_until`` are how time passes in a deployment.
"""

from __future__ import annotations

import itertools
import shutil
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from core.catalog.plans import Catalog
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Management, Organization
from core.drift.conflict_resolver import CannotResolveError
from core.events.event_types import ChangeContext
from core.flow_control import circuit_breaker
from core.inbox import provider_webhooks
from core.inbox.provider_webhooks import ParsedWebhook
from core.organizations import commands as organization_commands
from core.organizations import links
from core.ports.errors import ProviderError
from core.ports.spec import PROVIDERS, Provider
from core.reconcile import backoff, commands, due_links, payment_holds
from sandbox.client import SandboxClient
from tests.money.brake import BrakeWatch
from tests.money.catalog_moves import CatalogMoves
from tests.money.dashboard_edits import Hands
from tests.money.payments import PaymentBooks
from tests.money.prices import PriceWatch
from tests.money.provider_books import ActionHistory, Books
from tests.money.schedules import ScheduleWatch, began_at
from tests.money.tally import Tally
from tests.money.unpaid_invoices import UnpaidInvoices
from tests.support.drift_harness import conflict_resolver_of
from tests.support.sync_world import open_world

# Far from today, so that no story depends on the day on which it is told.
BEGINNING: Final = datetime(2031, 3, 10, 12, tzinfo=UTC)
UNKNOWN: Final = "legacy"
TIERS: Final = ["founders_friend", "starter", "professional", "enterprise"]
# Longer than any link waits by itself, so that each sweep finds whatever is left.
SWEEP_INTERVAL_SECONDS: Final = backoff.MAX_BACKOFF_SECONDS + links.SWEEP_GRACE.total_seconds()
MAX_RECONCILES_EACH: Final = 12
SWEEPS_TO_SETTLE: Final = 6
BURST_COOLDOWN_SECONDS: Final = backoff.COOLDOWN_AFTER_CONCURRENT_CHANGE.total_seconds() + 0.1
TICK: Final = timedelta(minutes=12)

Trouble = tuple[Provider, str, str, int] | None
"""Biller, operation, kind of fault, and how often."""


@dataclass(frozen=True)
class Stage:
    """What every story of a run begins with. ``empty``: a database to copy.

    ``management``: the mode of the installation once the first organizations are at home.
    """

    empty: Path
    sandbox: SandboxClient
    url: str
    plans: Catalog
    tally: Tally
    management: Management = "manage"


class MoneyStory:
    def __init__(self, stage: Stage) -> None:
        self._folder = TemporaryDirectory()
        file = Path(self._folder.name) / "story.db"
        shutil.copy(stage.empty, file)
        stage.sandbox.reset()
        stage.sandbox.settings(limits=False)
        stage.sandbox.set_clock(BEGINNING)
        self.world = open_world(Database(f"sqlite:///{file}"), stage.sandbox, stage.plans, stage.url)
        self.world.now = BEGINNING
        self.history = ActionHistory()
        self.prices = PriceWatch()
        self.brake = BrakeWatch(world=self.world)
        self.hands = Hands(world=self.world, history=self.history)
        self.invoices = UnpaidInvoices(world=self.world, history=self.history, made={})
        self.catalog_moves = CatalogMoves(world=self.world, history=self.history, prices=self.prices)
        self.bills_nothing_in_lago = False
        self.org_ids: list[str] = []
        self._schedules = ScheduleWatch(running_since=BEGINNING, last_sweep=BEGINNING)
        self._webhooks = itertools.count()
        self._sent: list[ParsedWebhook] = []
        self._lost: list[ParsedWebhook] = []

    def close(self) -> None:
        for provider in self.world.providers.values():
            provider.close()
        self.world.database.close()
        self._folder.cleanup()

    def begin_with_plans_of_amount_0(self) -> None:
        """Each tier that costs something has one from the beginning on, so Lago never bills what Stripe charges."""
        self.catalog_moves.name_plans_of_amount_0([tier for tier in TIERS if self.world.catalog.plan(tier).amount > 0])
        self.bills_nothing_in_lago = True

    # What is asked of us.

    def create(self, tier: str) -> str:
        org_id = self.world.create(f"Acme {len(self.org_ids)}", tier)
        self.org_ids.append(org_id)
        self.history.asked[org_id].add(tier)
        return org_id

    def change_plan(self, org_id: str, tier: str) -> None:
        self.history.asked[org_id].add(tier)
        self.history.plan_changes[org_id] += 1
        self.world.change_plan(org_id, tier)

    def change(self, org_id: str, change: str) -> None:
        if change in {"active", "deleted", "theirs"} or (
            change in {"ours", "retry"} and org_id in self.history.touched
        ):
            self.history.words[org_id] += 1
        if change in {"ours", "theirs"}:
            self.history.decisions[org_id] += 1
        match change:
            case "Globex" | "Initech" as name:
                self.world.rename(org_id, f"{name} {self.org_ids.index(org_id)}")
            case "active" | "suspended" | "deleted" as status:
                if status == "deleted":
                    self.history.deleted.add(org_id)
                    # It ends a hold of the payment brake; its end may be another one.
                    self.history.decisions[org_id] += 1
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

    def _take_theirs(self, org_id: str) -> None:
        self.history.plan_changes[org_id] += 1
        resolver = conflict_resolver_of(self.world)
        for provider in PROVIDERS:
            with suppress(CannotResolveError, ProviderError):
                resolver.take_theirs(org_id, provider)

    # What operators say about the payment brake.

    def decide(self, org_id: str, decision: str) -> list[Provider]:
        """Release or drop; returns the providers at which something waited."""
        decided: list[Provider] = []

        def decide(change: ChangeContext, found: Organization) -> None:
            if decision == "release":
                decided.extend(payment_holds.release(change, found, self.world.catalog, "it is meant"))
            else:
                decided.extend(payment_holds.drop(change, found, "it is not meant"))

        self.history.decisions[org_id] += 1
        self.world.change(org_id, decide)
        return decided

    def expect(self, changes: int) -> None:
        self.brake.expected += changes
        with self.world.database.write() as session:
            payment_holds.expect(ChangeContext(session, self.world.now), changes, timedelta(days=3), "it is meant")

    # What providers report.

    def receive_webhook(self, org_id: str, provider: Provider, delivery: str = "once") -> None:
        """``delivery``: "lost"; "twice"; "again": an earlier one, too; "shuffled": those that were lost come first."""
        webhook = ParsedWebhook(
            provider=provider,
            id=f"evt_{next(self._webhooks)}",
            type="any",
            effect="check",
            customer_id=self.world.link(org_id, provider).customer_id,
            org_id=org_id if provider == "lago" else None,
        )
        match delivery:
            case "lost":
                self._lost.append(webhook)
                return
            case "twice":
                arriving = [webhook, webhook]
            case "again":
                arriving = [webhook, *self._sent[-1:]]
            case "shuffled":
                arriving, self._lost = [*reversed(self._lost), webhook], []
            case _:
                arriving = [webhook]
        self._sent.append(webhook)
        for each in arriving:
            with self.world.database.write() as session:
                provider_webhooks.store(session, each, self.world.now)
            provider_webhooks.process(self.world.database, self.world.clock)

    def make(self, trouble: Trouble) -> None:
        if trouble is not None:
            provider, operation, kind, times = trouble
            self.world.sandbox.add_fault(provider, operation, kind, times=times, seconds=0.02)

    # What workers do.

    def then(self, org_id: str, then: str) -> None:
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
                    self._watch(self.books())
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

    def sweep(self) -> None:
        due_links.recheck_due_downgrades(self.world.database, 100, self.world.now, self.world.management)
        for provider in PROVIDERS:
            with self.world.database.write() as session:
                room = circuit_breaker.free_capacity(session, provider, 100, self.world.now)
                dispatched = due_links.dispatch(session, provider, room, self.world.now)
            for org_id in dispatched:
                self.world.run(org_id, provider)
        self._schedules.swept(self.world.now, faulty=bool(self.world.sandbox.faults()))

    def settle(self, org_id: str) -> bool:
        """All faults are over, and workers do what is left. Returns whether the organization is in sync."""
        self.world.sandbox.clear_faults()
        self._reconcile_until_idle(org_id)
        for _ in range(SWEEPS_TO_SETTLE):
            if not self.behind(org_id):
                break
            self.world.advance_time(seconds=SWEEP_INTERVAL_SECONDS)
            self.sweep()
            self._watch(self.books())
        self._watch(self.books())
        return all(link.state == "active" for link in self.links(org_id)) and not self.behind(org_id)

    def live_until(self, moment: datetime) -> None:
        """Sweeps follow each other up to that moment, and each is looked at.

        The second one of a pair starts what the first one marked: in a deployment it comes seconds later.
        """
        while self.world.now < moment:
            self.world.advance_time(seconds=TICK.total_seconds())
            self.sweep()
            self.world.advance_time(seconds=links.SWEEP_GRACE.total_seconds() + 1)
            self.sweep()
            self._watch(self.books())

    # What is seen from outside.

    def check(self) -> None:
        books = self.books()
        books.check(self.world.now)
        PaymentBooks(books=books).check()
        self._watch(books)
        sold_by_hand = {link.subscription_id for link in self.links()} & set(self.history.rogues)
        assert not sold_by_hand, f"{sold_by_hand} were made by hand, and taken for ours"

    def _watch(self, books: Books) -> None:
        """Prices, and scheduled changes that nobody touched, of links that need no person."""
        books.record_prices()
        self.prices.observe(books, self.world.now)
        self.brake.observe(books)
        for org_id in self.org_ids:
            organization = self.world.organization(org_id)
            if organization.pending_plan_tier is None or org_id in self.history.touched:
                continue
            at_stripe, at_lago = self.links(org_id)
            link = at_stripe if at_stripe.subscription_id is not None else at_lago
            if link.state == "active":
                began = began_at(self.prices, organization, at_stripe.subscription_id)
                self._schedules.observe(organization, began, self.world.now)

    def period_end(self, org_id: str) -> datetime | None:
        """Of the subscription that charges, as its provider has it; Lago's is the midnight before its billing run."""
        books = self.books()
        for each in books.stripe_subscriptions(org_id):
            return datetime.fromtimestamp(each["items"]["data"][0]["current_period_end"], UTC)
        for each in books.lago_subscriptions(org_id):
            if each["status"] == "active":
                return datetime.fromisoformat(each["current_billing_period_ending_at"]) + timedelta(seconds=1)
        return None

    def amounts_in_lago(self, org_id: str) -> list[int]:
        return [each["plan_amount_cents"] for each in self.books().lago_subscriptions(org_id)]

    def lower_tier(self, org_id: str, tier: str) -> str | None:
        """``tier``, or else another one below the organization's that the same provider charges."""
        plans, current = self.world.catalog.plans, self.world.organization(org_id).plan_tier
        if current not in plans:
            return None
        lower = [
            each
            for each in (tier, *reversed(TIERS))
            if plans[each].rank < plans[current].rank and plans[each].charged_by == plans[current].charged_by
        ]
        return lower[0] if lower else None

    def links(self, *org_ids: str) -> list[BillingLink]:
        return [self.world.link(org_id, provider) for org_id in org_ids or self.org_ids for provider in PROVIDERS]

    def behind(self, *org_ids: str) -> list[str]:
        return [
            f"{link.org_id} at {link.provider}: {link.error_message}"
            for link in self.links(*org_ids)
            if link.state == "active" and (link.applied_version < link.desired_version or link.intent is not None)
        ]

    def books(self) -> Books:
        return Books(state=self.world.sandbox.state(), history=self.history, catalog=self.world.catalog)

    def objects_at(self, org_id: str, provider: str) -> object:
        """What the provider has of the organization, without what time changes.

        Lago writes the name and email of the Stripe customer that it charges: these are not ours to keep.
        """
        state = self.world.sandbox.state()
        here = state[provider]
        if provider == "lago":
            customers = [each for each in here["customers"] if each["external_id"] == org_id]
            subscriptions = [each for each in here["subscriptions"] if each["external_customer_id"] == org_id]
            return (
                [(each["name"], each["email"], str(each["billing_configuration"])) for each in customers],
                [(each["lago_id"], each["status"], each["plan_code"]) for each in subscriptions],
            )
        customer_id = self.world.link(org_id, "stripe").customer_id
        customers = [each for each in here["customers"] if each["id"] == customer_id]
        subscriptions = [each for each in here["subscriptions"] if each["customer"] == customer_id]
        charged = [each["billing_configuration"].get("provider_customer_id") for each in state["lago"]["customers"]]
        told = ("deleted",) if customer_id in charged else ("name", "email", "deleted")
        return (
            [tuple(each.get(key) for key in told) for each in customers],
            [(each["id"], each["status"], each["items"]["data"][0]["price"]["id"]) for each in subscriptions],
        )


def _lose_the_plan(change: ChangeContext, organization: Organization) -> None:
    """As after an import, or with a catalog that lost a table."""
    organization.plan_tier, organization.pending_plan_tier = UNKNOWN, None
    links.mark_for_sync(change, organization)
