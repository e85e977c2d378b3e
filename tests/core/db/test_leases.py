"""A lease is one holder's at a time, always ends, and cannot be written by whoever lost it."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from sqlalchemy import select, update

from core.db import leases
from core.db.base import Base
from core.db.database import Database
from core.db.leases import Leased
from core.db.models.jobs import JobLock
from tests.support.clocks import SetClock

LEASE = timedelta(seconds=30)
MOMENT = timedelta(microseconds=1)


class LeaseHarness:
    """One row, leased as every owner of a lease does it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        with database.write() as session:
            session.add(JobLock(name="job"))

    def is_free(self, now: datetime) -> bool:
        with self.database.read() as session:
            return session.scalar(select(JobLock.name).where(leases.is_free(JobLock, now))) is not None

    def acquire(self, now: datetime) -> str | None:
        token = leases.new_token()
        statement = update(JobLock).where(leases.is_free(JobLock, now)).values(leases.acquired(token, now + LEASE))
        with self.database.write() as session:
            acquired = session.scalars(statement.returning(JobLock.name)).one_or_none()
        return None if acquired is None else token

    def release(self, token: str) -> bool:
        statement = update(JobLock).where(leases.is_mine(JobLock, token)).values(leases.RELEASED)
        with self.database.write() as session:
            return session.scalars(statement.returning(JobLock.name)).one_or_none() is not None

    def columns(self) -> tuple[str | None, datetime | None]:
        with self.database.read() as session:
            row = session.get_one(JobLock, "job")
            return row.lease_token, row.lease_until


@pytest.fixture
def harness(database: Database) -> LeaseHarness:
    return LeaseHarness(database)


def test_a_row_that_nobody_has_is_free(harness: LeaseHarness, clock: SetClock) -> None:
    assert harness.is_free(clock())


def test_a_leased_row_is_acquired_by_nobody_else(harness: LeaseHarness, clock: SetClock) -> None:
    token = harness.acquire(clock())
    assert token is not None
    assert not harness.is_free(clock())
    assert harness.acquire(clock()) is None
    assert harness.columns() == (token, clock() + LEASE)


def test_a_lease_ends_after_its_last_moment(harness: LeaseHarness, clock: SetClock) -> None:
    harness.acquire(clock())
    assert not harness.is_free(clock() + LEASE)
    assert harness.is_free(clock() + LEASE + MOMENT)


def test_a_released_row_is_free_at_once(harness: LeaseHarness, clock: SetClock) -> None:
    token = harness.acquire(clock())
    assert token is not None
    assert harness.release(token)
    assert harness.columns() == (None, None)
    assert harness.is_free(clock())


def test_a_lease_that_has_ended_is_its_holders_until_somebody_acquires_it(
    harness: LeaseHarness, clock: SetClock
) -> None:
    first = harness.acquire(clock())
    assert first is not None
    assert harness.is_free(clock() + LEASE + MOMENT)
    assert harness.release(first)


def test_who_comes_back_after_the_lease_was_acquired_by_another_changes_nothing(
    harness: LeaseHarness, clock: SetClock
) -> None:
    first = harness.acquire(clock())
    later = clock() + LEASE + MOMENT
    second = harness.acquire(later)
    assert first is not None
    assert second not in {None, first}
    assert not harness.release(first)
    assert harness.columns() == (second, later + LEASE)


def test_nobody_has_a_released_row(harness: LeaseHarness, clock: SetClock) -> None:
    token = harness.acquire(clock())
    assert token is not None
    assert harness.release(token)
    assert not harness.release(token)


def test_every_table_with_the_end_of_a_lease_has_the_same_two_columns() -> None:
    models = {mapper.class_ for mapper in Base.registry.mappers if "lease_until" in mapper.columns}
    assert {model.__name__ for model in models} == {"BillingLink", "Email", "Event", "JobLock", "WebhookDelivery"}
    assert all(issubclass(model, Leased) for model in models)
