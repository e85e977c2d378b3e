"""Both providers for tests of reconciling: real HTTP to the sandbox, and hooks that run code within an attempt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from core.catalog import publishing
from core.catalog.plans import Catalog, ChargingProvider
from core.compare.desired_state import PayerPolicy
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Management, Organization
from core.events.event_types import ChangeContext
from core.flow_control.payment_brake import PaymentLimit
from core.organizations import commands, management, memberships, plan_changes
from core.organizations.commands import NewOrganization
from core.organizations.provider_ids import set_customer_ids as replace_ids
from core.ports.observed import ObservedCredit
from core.ports.provider import AttemptContext, BillingProvider, Customer, StateReader, Subscription
from core.ports.spec import PROVIDERS, Account, CustomerSpec, LastKnown, PriceSpec, Provider, SubscriptionSpec
from core.reconcile import attempt, observation
from core.reconcile import commands as reconcile_commands
from core.reconcile.account_guard import AccountGuard
from core.reconcile.observation import Observation
from core.reconcile.reconciler import Reconciler, ReconcileResult
from providers.lago.provider import LagoProvider
from providers.stripe.provider import StripeProvider
from sandbox.client import SandboxClient

PAYMENT_PROVIDER_CODE = "stripe_main"
MAX_RECONCILES = 30

CREATE_CUSTOMER_REQUEST = "POST /v1/customers"


def do_nothing() -> None:
    return


class HookedProvider:
    """Wraps a provider and runs a hook once, before or after a call."""

    def __init__(self, wrapped: BillingProvider) -> None:
        self._wrapped = wrapped
        self.before_customer = do_nothing
        self.after_customer = do_nothing
        self.before_subscription = do_nothing
        self.after_subscription = do_nothing
        self.after_end = do_nothing
        self.after_marks = do_nothing
        self.after_payer = do_nothing

    def connect_again(self, wrapped: BillingProvider) -> None:
        self._wrapped.close()
        self._wrapped = wrapped

    @property
    def provider(self) -> Provider:
        return self._wrapped.provider

    @property
    def reader(self) -> StateReader:
        return self._wrapped.reader

    def ensure_customer(self, spec: CustomerSpec, last_known: LastKnown, attempt: AttemptContext) -> Customer:
        self._run_hook("before_customer")
        customer = self._wrapped.ensure_customer(spec, last_known, attempt)
        self._run_hook("after_customer")
        return customer

    def ensure_subscription(
        self, spec: SubscriptionSpec, last_known: LastKnown, attempt: AttemptContext
    ) -> Subscription:
        self._run_hook("before_subscription")
        subscription = self._wrapped.ensure_subscription(spec, last_known, attempt)
        self._run_hook("after_subscription")
        return subscription

    def has_our_marks(self, customer_id: str, org_id: str, attempt: AttemptContext) -> bool:
        return self._wrapped.has_our_marks(customer_id, org_id, attempt)

    def refuse_arranged_end(self, last_known: LastKnown, org_id: str, attempt: AttemptContext) -> None:
        self._wrapped.refuse_arranged_end(last_known, org_id, attempt)

    def end_subscription(self, last_known: LastKnown, org_id: str, attempt: AttemptContext) -> ObservedCredit | None:
        credit = self._wrapped.end_subscription(last_known, org_id, attempt)
        self._run_hook("after_end")
        return credit

    def write_marks(self, last_known: LastKnown, org_id: str, plan_code: str | None, attempt: AttemptContext) -> None:
        self._wrapped.write_marks(last_known, org_id, plan_code, attempt)
        self._run_hook("after_marks")

    def remove_marks(self, last_known: LastKnown, org_id: str, attempt: AttemptContext) -> None:
        self._wrapped.remove_marks(last_known, org_id, attempt)

    def remove_payer(self, last_known: LastKnown, org_id: str, attempt: AttemptContext, *, collects: bool) -> None:
        self._wrapped.remove_payer(last_known, org_id, attempt, collects=collects)
        self._run_hook("after_payer")

    def find_price(self, code: str) -> PriceSpec | None:
        return self._wrapped.find_price(code)

    def create_price(self, price: PriceSpec) -> None:
        self._wrapped.create_price(price)

    def fetch_account(self) -> Account:
        return self._wrapped.fetch_account()

    def close(self) -> None:
        self._wrapped.close()

    def _run_hook(self, name: str) -> None:
        hook: Callable[[], None] = getattr(self, name)
        setattr(self, name, do_nothing)
        hook()


class WorkerDiedError(BaseException):
    """Ends an attempt as a kill does: no handler of ours catches it, and nothing is written."""


def kill_worker() -> None:
    raise WorkerDiedError


@dataclass(kw_only=True)
class SyncWorld:
    """One database, both providers in the sandbox, and one clock for all of them."""

    database: Database
    sandbox: SandboxClient
    catalog: Catalog
    providers: Mapping[Provider, HookedProvider]
    connect: Callable[[], Mapping[Provider, BillingProvider]] = dict
    """A new connection to each provider, as a process opens it when it starts."""
    account_guard: AccountGuard = field(init=False)
    policy: PayerPolicy = field(default_factory=lambda: PayerPolicy(sends_payer_to_lago=True))
    management: Management = "manage"
    payment_limit: PaymentLimit | None = None
    url: str = ""
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        self.account_guard = AccountGuard(database=self.database, providers=self.providers, clock=self.clock)

    def clock(self) -> datetime:
        return self.now

    @property
    def reconciler(self) -> Reconciler:
        return Reconciler(
            database=self.database,
            providers=self.providers,
            catalog=self.catalog,
            policy=self.policy,
            clock=self.clock,
            account_guard=self.account_guard,
            management=self.management,
            payment_limit=self.payment_limit,
        )

    def advance_time(self, **by: float) -> None:
        self.now += timedelta(**by)
        self.sandbox.set_clock(self.now)

    def restart(self) -> None:
        """As after a deployment: nothing is left of what a process remembers, such as prices."""
        for provider, connected in self.connect().items():
            self.providers[provider].connect_again(connected)

    def wait(self, seconds: float) -> None:
        """Move only our clock, for short waits that do not matter to the sandbox."""
        self.now += timedelta(seconds=seconds)

    def set_charging_provider(self, charging_provider: ChargingProvider, *tiers: str) -> None:
        """Change the charging provider of all plans, or only of ``tiers``, from now on."""
        plans = {
            tier: plan.model_copy(update={"charged_by": charging_provider}) if not tiers or tier in tiers else plan
            for tier, plan in self.catalog.plans.items()
        }
        self.catalog = self.catalog.model_copy(update={"plans": plans})
        publishing.publish(self.catalog, self.providers.values())
        self.sandbox.reset_calls()

    def create(self, name: str = "Acme", plan_tier: str = "professional", email: str | None = "ap@acme.test") -> str:
        new = NewOrganization(name=name, plan_tier=plan_tier, billing_email=email)
        with self.database.write() as session:
            return commands.create(ChangeContext(session, self.now), new, self.catalog).id

    def change(self, org_id: str, change: Callable[[ChangeContext, Organization], object]) -> None:
        with self.database.write() as session:
            organization = commands.lock(session, org_id)
            assert organization is not None
            change(ChangeContext(session, self.now), organization)

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

    def set_customer_id(self, org_id: str, provider: Provider, customer_id: str) -> None:
        self.change(org_id, lambda change, organization: replace_ids(change, organization, {provider: customer_id}))

    def keep_ours(self, org_id: str) -> None:
        """Decide each conflict of the organization for our state, if there is one."""
        with self.database.write() as session:
            organization = commands.lock(session, org_id)
            if organization is not None:
                for provider in PROVIDERS:
                    reconcile_commands.end_conflict(ChangeContext(session, self.now), organization, provider, "ours")

    def organization(self, org_id: str) -> Organization:
        with self.database.read() as session:
            return session.get_one(Organization, org_id)

    def set_mode(self, org_id: str, mode: Management) -> None:
        self.change(org_id, lambda change, organization: management.set_mode(change, organization, mode))

    def observation(self, org_id: str, provider: Provider) -> Observation:
        stored = observation.from_json(self.link(org_id, provider).observation)
        assert stored is not None
        return stored

    def link(self, org_id: str, provider: Provider) -> BillingLink:
        with self.database.read() as session:
            return session.get_one(BillingLink, (org_id, provider))

    def run(self, org_id: str, provider: Provider) -> ReconcileResult:
        return self.reconciler.run(org_id, provider)

    def reconcile_until_idle(self, org_id: str, *, max_reconciles: int = MAX_RECONCILES) -> list[ReconcileResult]:
        """Reconcile as a worker does until nothing is left; returns the last result of each link."""
        queue: list[Provider] = ["stripe", "lago"]
        last: dict[Provider, ReconcileResult] = {}
        for _ in range(max_reconciles):
            if not queue:
                break
            provider = queue.pop(0)
            last[provider] = result = self.run(org_id, provider)
            queue += [requeued for requeued in result.also_requeue if requeued not in queue]
            if result.requeue_after is not None and provider not in queue:
                queue.append(provider)
                if not result.also_requeue:
                    self.wait(result.requeue_after + 0.01)
        assert not queue, f"not idle after {max_reconciles} reconciles: {last}"
        return list(last.values())

    def is_in_sync(self, org_id: str) -> bool:
        return all(
            (link := self.link(org_id, provider)).applied_version == link.desired_version and link.intent is None
            for provider in self.providers
        )

    def count_requests(self) -> tuple[int, int]:
        """The numbers of requests to Stripe and to Lago since the last call."""
        counters = self.sandbox.counters()
        self.sandbox.reset_calls()
        return counters.stripe.total, counters.lago.total

    def stripe_objects(self, object_type: str) -> list[dict[str, object]]:
        found = self.sandbox.state()["stripe"][object_type]
        return list(found)

    def lago_objects(self, object_type: str) -> list[dict[str, object]]:
        found = self.sandbox.state()["lago"][object_type]
        return list(found)

    def run_until_killed(self, org_id: str, provider: Provider) -> None:
        """Run an attempt whose worker a hook kills; its lease stays in the row."""
        try:
            self.run(org_id, provider)
        except WorkerDiedError:
            return
        message = "the worker was not killed"
        raise AssertionError(message)

    def expire_lease(self) -> None:
        self.wait(attempt.LINK_LEASE.total_seconds() + 1)


def open_world(database: Database, sandbox: SandboxClient, catalog: Catalog, url: str) -> SyncWorld:
    providers: dict[Provider, HookedProvider] = {}
    world = SyncWorld(database=database, sandbox=sandbox, catalog=catalog, providers=providers, url=url)

    def connect() -> Mapping[Provider, BillingProvider]:
        return {
            "stripe": StripeProvider("sk_test_sandbox", url, ending=catalog.ending, clock=world.clock),
            "lago": LagoProvider(url, "sandbox", payment_provider_code=PAYMENT_PROVIDER_CODE, ending=catalog.ending),
        }

    world.connect = connect
    providers.update({provider: HookedProvider(connected) for provider, connected in connect().items()})
    publishing.publish(catalog, world.providers.values())
    world.account_guard.confirm()
    sandbox.reset_calls()
    return world


def with_policy(world: SyncWorld, policy: PayerPolicy) -> SyncWorld:
    return replace(world, policy=policy)
