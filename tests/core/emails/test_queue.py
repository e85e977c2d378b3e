"""Who is told what by mail, and when: each once, plans when both billers hold them, and nothing that is not true."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from core.access import users
from core.access.users import UserProfile
from core.catalog.plans import Catalog
from core.common.clock import utc_now
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.db.models.email import Email
from core.db.models.organizations import Management, MembershipRole, Organization
from core.emails import queue
from core.emails.queue import LeasedEmail
from core.events import outbox
from core.events.event_types import Cause, ChangeContext
from core.org_manager import OrgManager
from core.organizations import commands, management, memberships, plan_changes
from core.organizations.commands import NewOrganization
from tests.support.clocks import SetClock

Work = Callable[[ChangeContext, Organization], object]


class EmailHarness:
    """Organizations, their people, and the relay's part in it."""

    def __init__(self, database: Database, catalog: Catalog, clock: SetClock) -> None:
        self.database, self.catalog, self.clock = database, catalog, clock
        self.management: Management = "manage"

    def register(self, name: str = "Acme", owner: str = "alice", billing_email: str | None = None) -> str:
        with self.database.write() as session:
            change = ChangeContext(session, self.clock(), Cause(actor=owner))
            new = NewOrganization(name=name, plan_tier="professional", billing_email=billing_email)
            organization = commands.create(change, new, self.catalog)
            memberships.add(change, organization, owner, "owner")
            return organization.id

    def add_users(self, *user_ids: str) -> None:
        for user_id in user_ids:
            with self.database.write() as session:
                profile = UserProfile(user_id=user_id, name=user_id.title(), email=f"{user_id}@acme.test")
                users.upsert(ChangeContext(session, self.clock()), profile)

    def join(self, org_id: str, **roles: MembershipRole) -> None:
        def join(change: ChangeContext, organization: Organization) -> None:
            for user_id, role in roles.items():
                memberships.add(change, organization, user_id, role)

        self.change(org_id, join)

    def change(self, org_id: str, work: Work) -> None:
        with self.database.write() as session:
            organization = commands.lock(session, org_id)
            assert organization is not None
            work(ChangeContext(session, self.clock()), organization)

    def change_plan(self, org_id: str, tier: str) -> None:
        self.change(org_id, lambda change, found: plan_changes.change_plan(change, found, tier, self.catalog))

    def relay(self) -> None:
        """As the relay does: leased, handed over, marked."""
        with self.database.write() as session:
            token, events = outbox.lease_batch(session, 500, self.clock())
        with self.database.write() as session:
            marked = outbox.mark_published(session, token, self.clock())
            queue.enqueue_for_events(
                session,
                [each for each in events if each.seq in marked],
                self.catalog,
                self.clock(),
                self.management,
            )

    def sync(self, org_id: str) -> None:
        with self.database.write() as session:
            session.execute(
                update(BillingLink)
                .where(BillingLink.org_id == org_id)
                .values(applied_version=BillingLink.desired_version, customer_state="applied")
            )

    def emails(self) -> set[tuple[str, str, str]]:
        with self.database.read() as session:
            return {(row.kind, row.recipient, row.state) for row in session.scalars(select(Email))}

    def lease_next(self) -> LeasedEmail | None:
        with self.database.write() as session:
            queue.release_ready(session, self.clock(), self.management)
        with self.database.write() as session:
            return queue.lease_next(session, self.clock())

    def deliver(self) -> list[tuple[str, str]]:
        """What goes out now."""
        gone: list[tuple[str, str]] = []
        while (leased := self.lease_next()) is not None:
            gone.append((leased.kind, leased.recipient))
            with self.database.write() as session:
                queue.mark_sent(session, leased, self.clock())
        return gone


@pytest.fixture
def harness(database: Database, plans: Catalog, clock: SetClock) -> EmailHarness:
    return EmailHarness(database, plans, clock)


def test_whoever_registers_an_organization_is_welcomed_once(harness: EmailHarness) -> None:
    harness.add_users("alice")
    harness.register()
    harness.relay()
    harness.relay()
    assert harness.emails() == {("welcome", "alice@acme.test", "pending")}


def test_an_owner_whose_address_nobody_knows_is_welcomed_at_the_billing_address(harness: EmailHarness) -> None:
    harness.register(billing_email="billing@acme.test")
    harness.register("Globex", owner="bob")
    harness.relay()
    assert harness.emails() == {("welcome", "billing@acme.test", "pending")}


def test_who_joins_later_or_is_no_owner_is_not_welcomed(harness: EmailHarness) -> None:
    harness.add_users("alice", "bob", "carol")
    org_id = harness.register()
    harness.clock.advance(seconds=1)
    harness.join(org_id, bob="owner", carol="member")
    harness.relay()
    assert harness.emails() == {("welcome", "alice@acme.test", "pending")}


def test_an_observed_organization_gets_no_email(harness: EmailHarness) -> None:
    """By the mode of the installation, by its own, or because what it has is not ours."""
    harness.add_users("alice")
    harness.management = "observe"
    harness.register()
    harness.relay()
    harness.management = "manage"
    org_id = harness.register("Globex")
    harness.change(org_id, lambda change, found: management.set_mode(change, found, "observe"))
    other = harness.register("Initech")
    with harness.database.write() as session:
        session.get_one(BillingLink, (other, "stripe")).ownership = "theirs"
    harness.relay()
    assert harness.emails() == set()
    harness.register("Managed")
    harness.relay()
    assert harness.emails() == {("welcome", "alice@acme.test", "pending")}


@pytest.mark.parametrize("by", ["the installation's mode", "its own mode", "ownership"])
def test_a_plan_email_that_waits_when_its_organization_is_observed_is_never_sent(
    harness: EmailHarness, by: str
) -> None:
    """Weeks later, once it is managed, the change is applied; it would be told as if it were new."""
    harness.add_users("alice")
    org_id = harness.register()
    harness.change_plan(org_id, "enterprise")
    harness.relay()
    if by == "ownership":
        with harness.database.write() as session:
            session.get_one(BillingLink, (org_id, "stripe")).ownership = "theirs"
    elif by == "its own mode":
        harness.change(org_id, lambda change, found: management.set_mode(change, found, "observe"))
    else:
        harness.management = "observe"
    assert harness.deliver() == [("welcome", "alice@acme.test")]
    harness.clock.advance(days=20)
    assert harness.deliver() == []
    harness.management = "manage"
    with harness.database.write() as session:
        session.get_one(BillingLink, (org_id, "stripe")).ownership = "adopted"
        session.get_one(Organization, org_id).management = None
    harness.sync(org_id)
    assert harness.deliver() == []
    assert ("plan_upgraded", "alice@acme.test", "stale") in harness.emails()


def test_an_event_that_is_relayed_twice_is_told_once(harness: EmailHarness) -> None:
    harness.add_users("alice")
    harness.register()
    with harness.database.write() as session:
        first, _ = outbox.lease_batch(session, 500, harness.clock())
    harness.clock.advance(seconds=31)
    harness.relay()
    with harness.database.write() as session:
        assert outbox.mark_published(session, first, harness.clock()) == set()
    assert len(harness.emails()) == 1


def test_those_who_decide_are_told_of_a_plan_when_both_billers_hold_it(harness: EmailHarness) -> None:
    harness.add_users("alice", "bob", "carol")
    org_id = harness.register(billing_email="Alice@acme.test")
    harness.join(org_id, bob="billing_admin", carol="member", dave="owner")
    harness.relay()
    harness.deliver()
    harness.change_plan(org_id, "enterprise")
    harness.relay()
    assert harness.deliver() == []
    with harness.database.write() as session:
        at_lago = (BillingLink.org_id == org_id, BillingLink.provider == "lago")
        session.execute(
            update(BillingLink)
            .where(*at_lago)
            .values(applied_version=BillingLink.desired_version, customer_state="applied")
        )
    harness.clock.advance(minutes=2)
    assert harness.deliver() == []
    harness.sync(org_id)
    harness.clock.advance(minutes=2)
    gone = harness.deliver()
    assert {kind for kind, _ in gone} == {"plan_upgraded"}
    assert sorted(address.lower() for _, address in gone) == ["alice@acme.test", "bob@acme.test"]
    assert harness.deliver() == []


@pytest.mark.parametrize(
    ("tiers", "kinds"),
    [
        (["enterprise"], ["plan_upgraded"]),
        (["starter"], ["downgrade_scheduled"]),
        (["starter", "professional"], ["downgrade_scheduled", "downgrade_taken_back"]),
    ],
)
def test_each_step_of_a_plan_has_its_mail(harness: EmailHarness, tiers: list[str], kinds: list[str]) -> None:
    harness.add_users("alice")
    org_id = harness.register()
    harness.relay()
    harness.deliver()
    gone = []
    for tier in tiers:
        harness.change_plan(org_id, tier)
        harness.relay()
        harness.sync(org_id)
        gone += harness.deliver()
    assert gone == [(kind, "alice@acme.test") for kind in kinds]


def test_a_downgrade_that_took_effect_is_told(harness: EmailHarness) -> None:
    harness.add_users("alice")
    org_id = harness.register()
    harness.relay()
    harness.change_plan(org_id, "starter")
    harness.relay()
    harness.sync(org_id)
    harness.deliver()
    harness.change(
        org_id, lambda change, found: plan_changes.record_scheduled_plan_took_effect(change, found, "starter")
    )
    harness.relay()
    assert harness.deliver() == [("downgrade_took_effect", "alice@acme.test")]


def test_what_is_not_true_any_more_is_not_sent(harness: EmailHarness) -> None:
    harness.add_users("alice")
    org_id = harness.register()
    harness.relay()
    harness.deliver()
    harness.change_plan(org_id, "starter")
    harness.relay()
    harness.change_plan(org_id, "professional")
    harness.relay()
    harness.sync(org_id)
    assert harness.deliver() == [("downgrade_taken_back", "alice@acme.test")]
    assert ("downgrade_scheduled", "alice@acme.test", "stale") in harness.emails()


def test_a_deleted_organization_writes_no_mails(harness: EmailHarness) -> None:
    harness.add_users("alice")
    org_id = harness.register()
    harness.relay()
    harness.change(org_id, lambda change, found: commands.change_status(change, found, "deleted"))
    harness.relay()
    assert harness.deliver() == []
    assert harness.emails() == {("welcome", "alice@acme.test", "stale")}


def test_two_workers_never_hold_the_same_mail(harness: EmailHarness) -> None:
    harness.add_users("alice")
    harness.register()
    harness.relay()
    first = harness.lease_next()
    assert first is not None
    assert harness.lease_next() is None
    harness.clock.advance(seconds=queue.EMAIL_LEASE.total_seconds() + 1)
    second = harness.lease_next()
    assert second is not None
    assert (second.id, second.lease_token != first.lease_token) == (first.id, True)
    with harness.database.write() as session:
        queue.fail(session, first, "too late to say so", harness.clock())
    assert harness.emails() == {("welcome", "alice@acme.test", "pending")}


def test_a_failed_email_is_sent_again_on_request_and_one_that_was_sent_is_not(harness: EmailHarness) -> None:
    harness.add_users("alice")
    harness.register()
    harness.relay()
    first = harness.lease_next()
    assert first is not None
    with harness.database.write() as session:
        queue.fail(session, first, "mailbox full", harness.clock())
    assert harness.lease_next() is None
    with harness.database.write() as session:
        assert queue.retry(session, first.id, harness.clock())
    again = harness.lease_next()
    assert again is not None
    assert (again.id, again.attempts) == (first.id, 0)
    with harness.database.write() as session:
        queue.mark_sent(session, again, harness.clock())
        assert not queue.retry(session, first.id, harness.clock())
    assert harness.emails() == {("welcome", "alice@acme.test", "sent")}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_mails_that_wait_are_looked_at_less_and_less_often(harness: EmailHarness) -> None:
    harness.add_users("alice")
    org_id = harness.register()
    harness.relay()
    harness.deliver()
    harness.change_plan(org_id, "enterprise")
    harness.relay()
    began, looks = harness.clock(), 0
    while harness.clock() - began < timedelta(minutes=30):
        assert harness.lease_next() is None
        with harness.database.read() as session:
            harness.clock.now = session.scalars(select(Email.next_attempt_at).where(Email.state == "pending")).one()
        looks += 1
    assert looks < 60


def test_the_old_managers_calls_are_told_of_as_well(database: Database, harness: EmailHarness) -> None:
    harness.add_users("alice")
    manager = OrgManager(database_url=database.url.render_as_string(hide_password=False))
    org_id = manager.create_organization("Acme", "starter")
    manager.add_user_to_org(org_id, "alice", "owner")
    manager.update_org_plan(org_id, "professional")
    manager.close()
    harness.clock.now = utc_now() + timedelta(minutes=1)
    harness.relay()
    harness.sync(org_id)
    harness.clock.advance(minutes=2)
    assert harness.deliver() == [("plan_upgraded", "alice@acme.test")]


def test_what_was_settled_long_ago_is_forgotten_and_what_waits_is_not(harness: EmailHarness) -> None:
    harness.add_users("alice", "bob")
    harness.register()
    harness.relay()
    assert harness.deliver() == [("welcome", "alice@acme.test")]
    harness.register("Globex", owner="bob")
    harness.relay()
    assert _cleared(harness) == 0
    harness.clock.advance(days=31)
    assert (_cleared(harness), _cleared(harness)) == (1, 0)
    assert harness.emails() == {("welcome", "bob@acme.test", "pending")}


def _cleared(harness: EmailHarness) -> int:
    with harness.database.write() as session:
        return queue.delete_expired(session, harness.clock())
