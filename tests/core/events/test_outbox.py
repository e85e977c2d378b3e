"""An event leaves the pending set only after the broker took it, and two relays never hold the same one."""

from __future__ import annotations

from datetime import timedelta

import pytest

from core.catalog.plans import Catalog
from core.db.database import Database
from core.events import outbox
from core.events.event_types import ChangeContext
from core.organizations import commands
from core.organizations.commands import NewOrganization
from tests.support.clocks import SetClock


@pytest.fixture
def five_events(database: Database, plans: Catalog, clock: SetClock) -> list[str]:
    with database.write() as session:
        change = ChangeContext(session, clock())
        return [
            commands.create(change, NewOrganization(name=f"Company {n}", plan_tier="starter"), plans).id
            for n in range(5)
        ]


def test_events_are_leased_oldest_first_and_only_once(
    database: Database, five_events: list[str], clock: SetClock
) -> None:
    with database.write() as session:
        _, first = outbox.lease_batch(session, 3, clock())
    with database.write() as session:
        _, second = outbox.lease_batch(session, 3, clock())
    assert [event.org_id for event in first + second] == five_events


def test_two_relays_at_the_same_moment_share_no_row(postgres_url: str, plans: Catalog, clock: SetClock) -> None:
    database = Database(postgres_url)
    database.upgrade()
    with database.write() as session:
        for number in range(10):
            new = NewOrganization(name=f"Company {number}", plan_tier="starter")
            commands.create(ChangeContext(session, clock()), new, plans)
    with database.write() as one, database.write() as other:
        _, first = outbox.lease_batch(one, 6, clock())
        _, second = outbox.lease_batch(other, 6, clock())
    assert (len(first), len(second)) == (6, 4)
    assert not {event.seq for event in first} & {event.seq for event in second}
    database.close()


def test_a_relay_that_died_before_marking_is_repeated_after_its_lease(
    database: Database, five_events: list[str], clock: SetClock
) -> None:
    assert five_events
    with database.write() as session:
        _, taken = outbox.lease_batch(session, 10, clock())
    clock.now += outbox.EVENT_LEASE + timedelta(seconds=1)
    with database.write() as session:
        _, again = outbox.lease_batch(session, 10, clock())
    assert again == taken


def test_an_event_that_two_relays_handed_over_leaves_the_pending_set_once(
    database: Database, five_events: list[str], clock: SetClock
) -> None:
    with database.write() as session:
        slow, _ = outbox.lease_batch(session, 10, clock())
    clock.now += outbox.EVENT_LEASE + timedelta(seconds=1)
    with database.write() as session:
        quick, taken = outbox.lease_batch(session, 10, clock())
    with database.write() as session:
        assert outbox.mark_published(session, slow, clock()) == set()
    with database.write() as session:
        assert outbox.mark_published(session, quick, clock()) == {event.seq for event in taken}
    with database.write() as session:
        assert outbox.mark_published(session, quick, clock()) == set()
    assert len(taken) == len(five_events)


def test_what_was_marked_is_gone_and_what_was_given_back_is_pending_at_once(
    database: Database, five_events: list[str], clock: SetClock
) -> None:
    assert five_events
    with database.write() as session:
        published, _ = outbox.lease_batch(session, 2, clock())
    with database.write() as session:
        refused, _ = outbox.lease_batch(session, 2, clock())
    with database.write() as session:
        outbox.mark_published(session, published, clock())
        outbox.release(session, refused)
    with database.write() as session:
        _, rest = outbox.lease_batch(session, 10, clock())
    assert [event.org_id for event in rest] == five_events[2:]
    with database.read() as session:
        assert outbox.has_pending(session)


def test_a_change_that_failed_leaves_no_event(database: Database, plans: Catalog, clock: SetClock) -> None:
    def fail() -> None:
        with database.write() as session:
            commands.create(ChangeContext(session, clock()), NewOrganization(name="Acme", plan_tier="starter"), plans)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with database.read() as session:
        assert not outbox.has_pending(session)
