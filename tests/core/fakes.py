"""Both billers for the tests of the sync: real ones over HTTP, and a way to have something happen in mid-turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from core.catalog import publishing
from core.catalog.plans import Catalog, ChargedBy
from core.compare.desired_state import Policy
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.events.event_types import Change
from core.organizations import commands, memberships, plan_changes
from core.organizations.commands import NewOrganization
from core.organizations.provider_ids import replace as replace_ids
from core.ports.provider import Auditor, Biller, Claim, Customer, Subscription
from core.ports.spec import Account, CustomerSpec, Known, Offer, Provider, SubscriptionSpec
from core.reconcile import attempt
from core.reconcile.account_guard import Accounts
from core.reconcile.reconciler import Outcome, Sync
from providers.lago.provider import LagoBiller
from providers.stripe.provider import StripeBiller
from sandbox.client import SandboxClient

PAYER_CODE = "stripe_main"
MOST_ROUNDS = 30

CREATE_CUSTOMER = "POST /v1/customers"


def nothing() -> None:
    return


class Meanwhile:
    """A biller that lets something happen once, before it answers; otherwise the one that it wraps."""

    def __init__(self, biller: Biller) -> None:
        self._biller = biller
        self.before_customer = nothing
        self.after_customer = nothing
        self.before_subscription = nothing
        self.after_subscription = nothing
        self.after_end = nothing

    @property
    def provider(self) -> Provider:
        return self._biller.provider

    @property
    def audit(self) -> Auditor:
        return self._biller.audit

    def make_customer(self, spec: CustomerSpec, known: Known, claim: Claim) -> Customer:
        self._once("before_customer")
        made = self._biller.make_customer(spec, known, claim)
        self._once("after_customer")
        return made

    def make_subscription(self, spec: SubscriptionSpec, known: Known, claim: Claim) -> Subscription:
        self._once("before_subscription")
        made = self._biller.make_subscription(spec, known, claim)
        self._once("after_subscription")
        return made

    def end_subscription(self, known: Known, org_id: str, claim: Claim) -> None:
        self._biller.end_subscription(known, org_id, claim)
        self._once("after_end")

    def find_offer(self, code: str) -> Offer | None:
        return self._biller.find_offer(code)

    def add_offer(self, offer: Offer) -> None:
        self._biller.add_offer(offer)

    def account(self) -> Account:
        return self._biller.account()

    def close(self) -> None:
        self._biller.close()

    def _once(self, name: str) -> None:
        happens: Callable[[], None] = getattr(self, name)
        setattr(self, name, nothing)
        happens()


class WorkerDiedError(BaseException):
    """Ends a turn as a kill would: no handler of ours sees it, nothing is written."""


def die() -> None:
    raise WorkerDiedError


@dataclass(kw_only=True)
class World:
    """One database, both billers in the sandbox, and a clock that moves for all of them."""

    database: Database
    sandbox: SandboxClient
    catalog: Catalog
    billers: Mapping[Provider, Meanwhile]
    accounts: Accounts = field(init=False)
    policy: Policy = field(default_factory=lambda: Policy(links_payer=True))
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        self.accounts = Accounts(database=self.database, billers=self.billers, clock=self.clock)

    def clock(self) -> datetime:
        return self.now

    @property
    def sync(self) -> Sync:
        return Sync(
            database=self.database,
            billers=self.billers,
            catalog=self.catalog,
            policy=self.policy,
            clock=self.clock,
            accounts=self.accounts,
        )

    def pass_time(self, **by: float) -> None:
        self.now += timedelta(**by)
        self.sandbox.set_clock(self.now)

    def wait(self, seconds: float) -> None:
        """Short waits: the sandbox need not hear of them."""
        self.now += timedelta(seconds=seconds)

    def charged_by(self, charged_by: ChargedBy, *tiers: str) -> None:
        """The deployment's setting from now on; with tiers, only theirs."""
        plans = {
            tier: plan.model_copy(update={"charged_by": charged_by}) if not tiers or tier in tiers else plan
            for tier, plan in self.catalog.plans.items()
        }
        self.catalog = self.catalog.model_copy(update={"plans": plans})
        publishing.push(self.catalog, self.billers.values())
        self.sandbox.reset_calls()

    def create(self, name: str = "Acme", plan_tier: str = "professional", email: str | None = None) -> str:
        new = NewOrganization(name=name, plan_tier=plan_tier, billing_email=email)
        with self.database.write() as session:
            return commands.create(Change(session, self.now), new, self.catalog).id

    def change(self, org_id: str, change: Callable[[Change, Organization], object]) -> None:
        with self.database.write() as session:
            organization = commands.lock(session, org_id)
            assert organization is not None
            change(Change(session, self.now), organization)

    def rename(self, org_id: str, name: str) -> None:
        self.change(org_id, lambda change, organization: commands.rename(change, organization, name))

    def change_plan(self, org_id: str, tier: str) -> None:
        self.change(
            org_id, lambda change, organization: plan_changes.change_plan(change, organization, tier, self.catalog)
        )

    def change_status(self, org_id: str, status: str) -> None:
        self.change(org_id, lambda change, organization: commands.change_status(change, organization, status))

    def add_member(self, org_id: str, user_id: str) -> None:
        self.change(org_id, lambda change, organization: memberships.add(change, organization, user_id, "member"))

    def bring_id(self, org_id: str, provider: Provider, customer_id: str) -> None:
        self.change(org_id, lambda change, organization: replace_ids(change, organization, {provider: customer_id}))

    def organization(self, org_id: str) -> Organization:
        with self.database.read() as session:
            return session.get_one(Organization, org_id)

    def link(self, org_id: str, provider: Provider) -> BillingLink:
        with self.database.read() as session:
            return session.get_one(BillingLink, (org_id, provider))

    def run(self, org_id: str, provider: Provider) -> Outcome:
        return self.sync.run(org_id, provider)

    def settle(self, org_id: str, *, rounds: int = MOST_ROUNDS) -> list[Outcome]:
        """What a worker does until nothing is left: follow each outcome, wait as it says; the last outcome of each."""
        waiting: list[Provider] = ["stripe", "lago"]
        last: dict[Provider, Outcome] = {}
        for _ in range(rounds):
            if not waiting:
                break
            provider = waiting.pop(0)
            last[provider] = outcome = self.run(org_id, provider)
            waiting += [woken for woken in outcome.wake if woken not in waiting]
            if outcome.again_in is not None and provider not in waiting:
                waiting.append(provider)
                if not outcome.wake:
                    self.wait(outcome.again_in + 0.01)
        assert not waiting, f"not settled after {rounds} rounds: {last}"
        return list(last.values())

    def settled(self, org_id: str) -> bool:
        return all(
            (link := self.link(org_id, provider)).applied_version == link.wanted_version and link.intent is None
            for provider in self.billers
        )

    def calls(self) -> tuple[int, int]:
        """Requests since last asked: to Stripe, to Lago."""
        counters = self.sandbox.counters()
        self.sandbox.reset_calls()
        return counters.stripe.total, counters.lago.total

    def stripe(self, noun: str) -> list[dict[str, object]]:
        found = self.sandbox.state()["stripe"][noun]
        return list(found)

    def lago(self, noun: str) -> list[dict[str, object]]:
        found = self.sandbox.state()["lago"][noun]
        return list(found)

    def die_after(self, org_id: str, provider: Provider) -> None:
        """A turn whose worker is killed where the test said; the lease is left behind."""
        try:
            self.run(org_id, provider)
        except WorkerDiedError:
            return
        message = "the worker did not die"
        raise AssertionError(message)

    def outlive_the_lease(self) -> None:
        self.wait(attempt.LEASE.total_seconds() + 1)


def open_world(database: Database, sandbox: SandboxClient, catalog: Catalog, url: str) -> World:
    billers: dict[Provider, Meanwhile] = {}
    world = World(database=database, sandbox=sandbox, catalog=catalog, billers=billers)
    stripe = StripeBiller("sk_test_sandbox", url, ending=catalog.ending, timeout=2.0, clock=world.clock)
    lago = LagoBiller(url, "sandbox", payment_provider_code=PAYER_CODE, ending=catalog.ending, timeout=2.0)
    billers["stripe"], billers["lago"] = Meanwhile(stripe), Meanwhile(lago)
    publishing.push(catalog, world.billers.values())
    world.accounts.confirm()
    sandbox.reset_calls()
    return world


def with_policy(world: World, policy: Policy) -> World:
    return replace(world, policy=policy)
