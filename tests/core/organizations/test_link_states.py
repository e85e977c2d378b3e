"""Each row of ``TRANSITIONS``, run by the function that writes it, from every state, against both databases."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any, Final, get_args

import pytest

from core.adoption import adoption, provider_objects, release
from core.adoption.adoption import AdoptionRules
from core.adoption.provider_objects import ProviderObjects
from core.adoption.row import AdoptionRow
from core.catalog import plans as plan_catalog
from core.catalog.plans import Catalog
from core.compare.desired_state import PayerPolicy
from core.db.database import Database
from core.db.models.billing_links import BillingLink, CustomerState, LinkState, Ownership, PlanState
from core.db.models.organizations import Organization
from core.events.event_types import ChangeContext
from core.organizations import commands, link_states, provider_ids
from core.organizations.commands import NewOrganization
from core.organizations.link_states import TRANSITIONS, LinkEvent, UndefinedTransitionError
from core.ports.errors import ConflictError, PaymentBrakeError, RejectedError
from core.ports.inventory import InventoryCustomer, InventoryItem, InventorySubscription
from core.ports.provider import Customer, Subscription
from core.ports.spec import PAYER_CHANGED, Provider
from core.reconcile import charging_moves, due_links, lease, outcomes, payment_holds
from core.reconcile import commands as reconcile_commands
from core.reconcile.attempt import ApplyResult, SyncAttempt
from core.reconcile.observation import Observation
from core.reconcile.outcomes import FollowUps
from tests.support.clocks import SetClock
from tests.support.importer import Importer
from tests.support.predecessor_files import organization

States = tuple[LinkState, CustomerState, PlanState]
CUSTOMER: Final = ApplyResult(customer=Customer(id="cus_1", livemode=False), customer_fingerprint="digest")
SUBSCRIPTION_THERE: Final = InventorySubscription(
    id="sub_1",
    customer_id="cus_1",
    items=(InventoryItem(price_id="professional", code="professional", amount=4900, currency="USD", interval="month"),),
)
SUBSCRIPTION: Final = ApplyResult(subscription=Subscription(id="sub_1", plan_code="professional"))


def _send_after(attempt: SyncAttempt, prepare: Callable[[None], None]) -> None:
    prepare(None)
    attempt.before_request("POST /v1/anything")


def _adopt(
    change: ChangeContext, acme: Organization, provider: Provider, subscriptions: tuple[InventorySubscription, ...]
) -> None:
    subscription = subscriptions[0] if subscriptions else None
    found = ProviderObjects(customer=InventoryCustomer(id="cus_1", name="Acme"), subscription=subscription)
    side = provider_objects.side_of(found)
    row = AdoptionRow(
        org_id=acme.id,
        sides={provider: side},
        matched_by="link",
        plan_tier="professional",
        difference=0,
        currency="USD",
        name_source=provider,
        email_source=provider,
        action="adopt",
        reason="",
    )
    rules = AdoptionRules(catalog=plan_catalog.load(), policy=PayerPolicy())
    adoption.adopt(change, row, {provider: found}, rules)


OF_ATTEMPTS: Final[dict[LinkEvent, Callable[[SyncAttempt], object]]] = {
    "customer_write_started": lambda attempt: _send_after(attempt, attempt.prepare_customer_write),
    "customer_written": lambda attempt: attempt.save_customer(CUSTOMER),
    "subscription_write_started": lambda attempt: _send_after(attempt, attempt.prepare_subscription_write),
    "subscription_written": lambda attempt: outcomes.complete(attempt, SUBSCRIPTION, FollowUps()),
    "subscription_end_started": lambda attempt: attempt.prepare_subscription_end(),
    "subscription_ended": lambda attempt: outcomes.complete(attempt, ApplyResult(ended=True), FollowUps()),
    "scheduled_plan_found": lambda attempt: attempt.invalidate_plan(),
    "completed": lambda attempt: outcomes.complete(attempt, ApplyResult(), FollowUps()),
    "parked": lambda attempt: outcomes.park(attempt, RejectedError(attempt.provider, "no")),
    "conflict_found": lambda attempt: outcomes.put_on_hold(attempt, ConflictError(attempt.provider, "changed")),
    "payment_on_hold": lambda attempt: outcomes.put_change_on_hold(attempt, PaymentBrakeError(attempt.provider, "no")),
    "lease_lost": outcomes.invalidate_after_lost_lease,
    "observed": lambda attempt: outcomes.observe(attempt, Observation(version=1)),
    "older_customer_found": lambda attempt: attempt.record_older_customer("cus_found"),
}
OF_COMMANDS: Final[dict[LinkEvent, Callable[[ChangeContext, Organization, Provider], object]]] = {
    "changed": lambda change, acme, _: commands.rename(change, acme, "Acme GmbH"),
    "deleted": lambda change, acme, _: commands.change_status(change, acme, "deleted"),
    "retried": lambda change, acme, _: reconcile_commands.retry(change, acme),
    "retried_keeping_customer": lambda change, acme, _: reconcile_commands.retry(change, acme),
    **dict.fromkeys(
        ("conflict_ended", "conflict_ended_keeping_customer", "payer_decided"),
        lambda change, acme, at: reconcile_commands.end_conflict(change, acme, at, "ours"),
    ),
    "payment_released": lambda change, acme, _: payment_holds.release(change, acme, plan_catalog.load(), "checked"),
    "charging_moved": lambda change, acme, at: charging_moves.begin(
        change, acme, plan_catalog.load(), "stripe" if at == "lago" else "lago", is_expected=False
    ),
    "customer_repaired": lambda change, acme, at: reconcile_commands.repair(change, acme.id, at, ["customer_repaired"]),
    "plan_repaired": lambda change, acme, at: reconcile_commands.repair(change, acme.id, at, ["plan_repaired"]),
    "customer_id_set": lambda change, acme, at: provider_ids.set_customer_ids(change, acme, {at: "cus_new"}),
    "adopted": lambda change, acme, at: _adopt(change, acme, at, ()),
    "adopted_with_subscription": lambda change, acme, at: _adopt(change, acme, at, (SUBSCRIPTION_THERE,)),
    "released": lambda change, acme, _: release.release(change, acme),
}
OWNERSHIP_BEFORE: Final[dict[LinkEvent, Ownership]] = {
    "adopted": "theirs",
    "adopted_with_subscription": "theirs",
    "released": "adopted",
}
# Only a link on hold for this reason is moved by the event.
CONFLICTS: Final[tuple[LinkEvent, ...]] = (
    "deleted",
    "conflict_ended",
    "conflict_ended_keeping_customer",
    "payer_decided",
    "adopted",
    "adopted_with_subscription",
)
KEEPING_CUSTOMER: Final[tuple[LinkEvent, ...]] = ("retried_keeping_customer", "conflict_ended_keeping_customer")


class Links:
    """One organization, whose links are put into any state."""

    def __init__(self, database: Database, plans: Catalog, clock: SetClock) -> None:
        self.database, self.clock = database, clock
        with database.write() as session:
            new = NewOrganization(name="Acme", plan_tier="professional", org_id="org_acme")
            commands.create(ChangeContext(session, clock()), new, plans)

    def put(self, provider: Provider, states: States, **values: Any) -> None:  # noqa: ANN401 - columns of all types
        state, customer_state, plan_state = states
        with self.database.write() as session:
            link = session.get_one(BillingLink, ("org_acme", provider))
            link.state, link.customer_state, link.plan_state = states
            link.customer_id = None if customer_state == "absent" else "cus_1"
            link.customer_fingerprint = "digest" if customer_state == "applied" else None
            link.applied_plan = "professional" if plan_state == "applied" else None
            link.lease_token = link.lease_until = link.not_before = link.intent = None
            link.applied_version = link.desired_version - 1 if state == "active" else 0
            link.subscription_id = link.error_kind = link.error_code = None
            for name, value in values.items():
                setattr(link, name, value)

    def states(self, provider: Provider) -> States:
        with self.database.read() as session:
            link = session.get_one(BillingLink, ("org_acme", provider))
        assert (link.customer_fingerprint is not None) == (link.customer_state == "applied")
        assert (link.applied_plan is not None) == (link.plan_state == "applied")
        assert (link.customer_id is None) == (link.customer_state == "absent")
        return (link.state, link.customer_state, link.plan_state)

    def attempt(self, provider: Provider) -> SyncAttempt:
        attempt = lease.acquire(self.database, self.clock, "org_acme", provider)
        assert isinstance(attempt, SyncAttempt)
        return attempt


@pytest.fixture
def links(database: Database, plans: Catalog, clock: SetClock) -> Links:
    return Links(database, plans, clock)


def after(event: LinkEvent, before: States) -> States | None:
    """``None``: the table has no such transition."""
    row = TRANSITIONS[event]
    state, customer_state, plan_state = before
    try:
        return (
            state if row.link is None else row.link[state],
            customer_state if row.customer is None else row.customer[customer_state],
            plan_state if row.plan is None else row.plan[plan_state],
        )
    except KeyError:
        return None


def all_states(state: LinkState) -> list[States]:
    return [(state, customer, plan) for customer, plan in product(get_args(CustomerState), get_args(PlanState))]


@pytest.mark.parametrize("event", OF_ATTEMPTS)
def test_an_attempt_moves_the_states_as_the_table_says_or_raises(links: Links, event: LinkEvent) -> None:
    for before in all_states("active"):
        links.put("stripe", before)
        attempt = links.attempt("stripe")
        expected = after(event, before)
        if expected is None:
            with pytest.raises(UndefinedTransitionError, match=f"^.*{event} cannot follow the state "):
                OF_ATTEMPTS[event](attempt)
            assert links.states("stripe") == before
        else:
            OF_ATTEMPTS[event](attempt)
            assert links.states("stripe") == expected, before


@pytest.mark.slow
@pytest.mark.parametrize("event", OF_COMMANDS)
def test_a_command_moves_the_states_as_the_table_says(links: Links, event: LinkEvent) -> None:
    at_lago = {*KEEPING_CUSTOMER, "payer_decided", "adopted_with_subscription", "released"}
    provider: Provider = "lago" if event in at_lago else "stripe"
    link_states_before: tuple[LinkState, ...] = tuple(TRANSITIONS[event].link or ("active",))
    for state in link_states_before:
        for before in all_states(state):
            if event in KEEPING_CUSTOMER and before[1] in {"absent", "unconfirmed"}:
                continue
            error_kind = "conflict" if event in CONFLICTS else "import"
            error_kind = "payment_brake" if event == "payment_released" else error_kind
            values: dict[str, Any] = {"error_kind": error_kind} if state == "on_hold" else {}
            values |= {"error_code": PAYER_CHANGED} if event == "payer_decided" else {}
            values |= {"ownership": OWNERSHIP_BEFORE[event]} if event in OWNERSHIP_BEFORE else {}
            with links.database.write() as session:
                found = session.get_one(Organization, "org_acme")
                found.status, found.name, version = "active", "Acme", found.version
            links.put(provider, before, desired_version=version, applied_version=version, **values)
            with links.database.write() as session:
                acme = commands.lock(session, "org_acme")
                assert acme is not None
                OF_COMMANDS[event](ChangeContext(session, links.clock()), acme, provider)
            assert links.states(provider) == after(event, before), before


@pytest.mark.slow
def test_a_downgrade_that_is_due_moves_the_plan_of_active_links_only(links: Links) -> None:
    for before in [*all_states("active"), *all_states("parked"), *all_states("on_hold")]:
        with links.database.write() as session:
            acme = session.get_one(Organization, "org_acme")
            acme.pending_plan_tier, acme.plan_effective_at = "starter", links.clock() - timedelta(hours=1)
            acme.downgrade_recheck_at = links.clock()
        links.put("stripe", before)
        due_links.recheck_due_downgrades(links.database, 10, links.clock(), "manage")
        expected = after("downgrade_due", before) if before[0] == "active" else before
        state = "on_hold" if before[0] == "on_hold" else "active"
        assert expected is not None
        assert links.states("stripe") == (state, *expected[1:]), before


def test_a_requested_check_moves_observed_links_only(links: Links) -> None:
    for state in get_args(LinkState):
        before: States = (state, "applied", "applied")
        links.put("lago", before, subscription_id="sub_1", applied_version=1, desired_version=1)
        with links.database.write() as session:
            due_links.request_routine_checks(session, "lago", timedelta(seconds=-1), 10, links.clock())
        assert links.states("lago") == after("check_requested", before)


def test_an_installation_that_is_managed_again_moves_observed_links_only(links: Links) -> None:
    for state in get_args(LinkState):
        before: States = (state, "applied", "applied")
        links.put("lago", before)
        with links.database.write() as session:
            due_links.resume_managed(session, 10, links.clock())
        expected = after("mode_of_installation_changed", before) if state == "observed" else before
        assert links.states("lago") == expected


def test_an_id_that_an_import_contests_puts_the_link_on_hold(
    links: Links, plans: Catalog, clock: SetClock, tmp_path: Path
) -> None:
    importer = Importer(database=links.database, plans=plans, clock=clock, folder=tmp_path)
    for number, state in enumerate(get_args(LinkState)):
        before: States = (state, "applied", "applied")
        links.put("stripe", before, customer_id="cus_contested", error_kind="import" if state == "on_hold" else None)
        importer.bring([organization(number, stripe_customer_id="cus_contested")])
        assert links.states("stripe") == after("customer_id_contested", before)


def test_a_conflict_stays_whatever_an_import_contests(
    links: Links, plans: Catalog, clock: SetClock, tmp_path: Path
) -> None:
    importer = Importer(database=links.database, plans=plans, clock=clock, folder=tmp_path)
    links.put("stripe", ("on_hold", "unknown", "applied"), customer_id="cus_contested", error_kind="conflict")
    importer.bring([organization(0, stripe_customer_id="cus_contested")])
    with links.database.read() as session:
        assert session.get_one(BillingLink, ("org_acme", "stripe")).error_kind == "conflict"


def test_every_event_is_run_here() -> None:
    elsewhere = {"downgrade_due", "customer_id_contested", "check_requested", "mode_of_installation_changed"}
    run = {*OF_ATTEMPTS, *OF_COMMANDS, *elsewhere}
    assert run == set(TRANSITIONS) == set(get_args(LinkEvent))


def test_each_row_names_a_function_that_exists() -> None:
    for row in TRANSITIONS.values():
        module, _, names = row.written_by.partition(":")
        found: object = importlib.import_module(module)
        for name in names.split("."):
            found = getattr(found, name)


def test_an_undefined_transition_parks_the_link(links: Links) -> None:
    links.put("stripe", ("active", "applied", "applied"))
    attempt = links.attempt("stripe")
    with pytest.raises(UndefinedTransitionError) as caught:
        link_states.plan_after("stripe", "subscription_ended", attempt.link.plan_state)
    outcomes.park(attempt, caught.value)
    with links.database.read() as session:
        link = session.get_one(BillingLink, ("org_acme", "stripe"))
    assert (link.state, link.error_code) == ("parked", "undefined_transition")
