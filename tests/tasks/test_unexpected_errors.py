"""An error that nobody named, at each step of a task: the work is in a row or in a message, and never gone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

import kombu
import pytest
from celery.exceptions import TaskPredicate
from sqlalchemy import event, select
from structlog.testing import capture_logs

from core.common.json_types import Json
from core.db.models.inbox import ServiceEvent
from core.db.models.organizations import Organization
from core.events.event_types import Cause
from core.inbox import missed_webhooks, service_events
from core.ports.spec import Provider
from core.reconcile.reconciler import MAX_UNEXPECTED_ATTEMPTS
from tasks.base import MAX_UNEXPECTED_TRIES, BillingApp, BillingTask, Runtime
from tasks.routing import QUEUES, RECEIVE_EVENT, SYNC_TO_STRIPE
from tests.support.strange_error import StrangeError
from tests.support.sync_world import SyncWorld
from worker.config.settings import IN_MEMORY_BROKER_URL, Settings
from worker.wiring.celery_app import build

SECRET = "nobody-may-read-this"
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


class NoEvents(missed_webhooks.EventReader):
    def read(self, *_: object) -> None:
        """Nothing came."""


@dataclass
class Steps:
    """Counts the statements that are sent to the database; the one with the number ``fails_at``, and all that follow
    while ``lasts``, raise."""

    count: int = 0
    fails_at: int | None = None
    lasts: bool = False

    def __call__(self, *_: object) -> None:
        number, self.count = self.count, self.count + 1
        if self.fails_at is not None and (number == self.fails_at or (self.lasts and number > self.fails_at)):
            raise StrangeError(SECRET)


@contextmanager
def steps(world: SyncWorld, fails_at: int | None = None, *, lasts: bool = False) -> Iterator[Steps]:
    counted = Steps(fails_at=fails_at, lasts=lasts)
    event.listen(world.database.engine, "before_cursor_execute", counted)
    try:
        yield counted
    finally:
        event.remove(world.database.engine, "before_cursor_execute", counted)


@dataclass
class Consumer:
    """Runs one task for one message, as a worker does, and holds what the task sends."""

    app: BillingApp

    def run(
        self, task_name: str, *arguments: Json, retries: int = 0, headers: dict[str, Any] | None = None
    ) -> BaseException | None:
        """The error with which the task ended; Celery acknowledges the message for all of them but ``Reject``."""
        task = self.app.tasks[task_name]
        assert isinstance(task, BillingTask)
        task.push_request(
            id=str(uuid4()),
            args=list(arguments),
            kwargs={},
            retries=retries,
            headers=headers,
            called_directly=False,
            delivery_info={},
        )
        try:
            task.run(*arguments)
        except (StrangeError, TaskPredicate, *task.throws) as error:
            return error
        finally:
            task.pop_request()
        return None

    def sent(self) -> list[tuple[str, list[Any], int]]:
        """Task, arguments and number of unexpected tries of each message in the queues. They are taken out."""
        return [(headers["task"], arguments, headers.get("unexpected_tries", 0)) for headers, arguments in self.take()]

    def take(self) -> list[tuple[dict[str, Any], list[Any]]]:
        """Headers and arguments of each message in the queues."""
        found = []
        with self.app.connection_for_read() as connection:
            for name in QUEUES:
                queue = kombu.Queue(name, channel=connection.default_channel)
                while (message := queue.get(no_ack=True)) is not None:
                    found.append((dict(message.headers), json.loads(message.body or "")[0]))
        return found


@pytest.fixture
def consumer(world: SyncWorld) -> Iterator[Consumer]:
    def open_runtime() -> Runtime:
        return Runtime(
            database=world.database,
            reconciler=world.reconciler,
            catalog=world.catalog,
            clock=world.clock,
            close=lambda: None,
            history_retention=timedelta(days=1),
            event_reader=NoEvents(),
            check_lago_every=timedelta(hours=1),
        )

    built = build(Settings(celery_broker_url=IN_MEMORY_BROKER_URL))
    app = BillingApp("unexpected", open_runtime=open_runtime, set_as_current=False)
    app.conf.update(built.conf.changes or {})
    app.loader.import_default_modules()
    made = Consumer(app)
    made.sent()
    yield made
    made.sent()


def created() -> dict[str, Json]:
    org_id = f"org_{uuid4()}"
    data: dict[str, Json] = {"name": f"Zebra {org_id}", "billing_email": "zelda@confidential.test"}
    envelope: dict[str, Json] = {"specversion": "1.0", "id": org_id, "source": "/signup", "subject": org_id}
    return {**envelope, "type": "organization.created", "data": data}


def row(world: SyncWorld, event_id: object) -> ServiceEvent | None:
    with world.database.read() as session:
        return session.scalars(select(ServiceEvent).where(ServiceEvent.id == event_id)).one_or_none()


def exists(world: SyncWorld, org_id: object) -> bool:
    with world.database.read() as session:
        return session.get(Organization, org_id) is not None


def count_steps(world: SyncWorld, work: Callable[[], object]) -> int:
    with steps(world) as counted:
        work()
    assert counted.count > 3
    return counted.count


def test_a_message_is_sent_again_whatever_step_fails(world: SyncWorld, consumer: Consumer) -> None:
    number_of_steps = count_steps(world, lambda: consumer.run(RECEIVE_EVENT, created()))
    for number in range(number_of_steps):
        message = created()
        with steps(world, fails_at=number), capture_logs() as logs:
            error = consumer.run(RECEIVE_EVENT, message)
        assert "StrangeError" in str(error), number
        assert SECRET not in str(error) + str(logs)
        assert [(each["event"], each["tries"]) for each in logs] == [("unexpected_error", 1)]
        assert row(world, message["id"]) is None
        assert consumer.sent() == [(RECEIVE_EVENT, [message], 1)]
        assert consumer.run(RECEIVE_EVENT, message, retries=1) is None
        stored = row(world, message["id"])
        assert stored is not None
        assert (stored.status, exists(world, message["id"])) == ("applied", True)


def test_a_message_that_fails_each_time_is_stored_as_rejected_and_can_be_replayed(
    world: SyncWorld, consumer: Consumer
) -> None:
    message = created()

    def fail_to_apply(*arguments: Any) -> None:  # noqa: ANN401 - as SQLAlchemy calls it
        if "INTO organizations" in arguments[2]:
            raise StrangeError(SECRET)

    event.listen(world.database.engine, "before_cursor_execute", fail_to_apply)
    for tries in range(MAX_UNEXPECTED_TRIES):
        consumer.run(RECEIVE_EVENT, message, headers={"unexpected_tries": tries})
        assert consumer.sent() == [(RECEIVE_EVENT, [message], tries + 1)]
    error = consumer.run(RECEIVE_EVENT, message, headers={"unexpected_tries": MAX_UNEXPECTED_TRIES})
    event.remove(world.database.engine, "before_cursor_execute", fail_to_apply)
    assert str(error) == "StrangeError; the message is stored as rejected"
    assert consumer.sent() == []
    stored = row(world, message["id"])
    assert stored is not None
    assert stored.status == "rejected"
    assert stored.reason == "unexpected error StrangeError; the log event unexpected_error says where"
    by = Cause(actor="operator")
    service_events.replay(world.database, world.catalog, world.clock, "/signup", str(message["id"]), by)
    assert exists(world, message["id"])


def test_a_message_that_cannot_even_be_stored_is_sent_again_for_as_long_as_it_takes(
    world: SyncWorld, consumer: Consumer
) -> None:
    message = created()
    for tries in (MAX_UNEXPECTED_TRIES, 1000):
        with steps(world, fails_at=0, lasts=True):
            consumer.run(RECEIVE_EVENT, message, headers={"unexpected_tries": tries})
        assert consumer.sent() == [(RECEIVE_EVENT, [message], tries + 1)]


def test_a_worker_that_cannot_open_what_it_needs_loses_no_message(consumer: Consumer) -> None:
    def broken() -> Runtime:
        raise StrangeError(SECRET)

    message = created()
    broken_app = BillingApp("broken", open_runtime=broken, set_as_current=False)
    broken_app.conf.update(consumer.app.conf.changes or {})
    broken_app.loader.import_default_modules()
    Consumer(broken_app).run(RECEIVE_EVENT, message, headers={"unexpected_tries": 1000})
    assert consumer.sent() == [(RECEIVE_EVENT, [message], 1001)]


def test_tries_while_the_database_is_away_do_not_count(world: SyncWorld, consumer: Consumer) -> None:
    message = created()
    for retries in (9, 1_000_000_000_000):
        with steps(world, fails_at=0):
            consumer.run(RECEIVE_EVENT, message, retries=retries)
        assert consumer.sent() == [(RECEIVE_EVENT, [message], 1)]


@pytest.mark.parametrize("header", [None, "8", True, -1, [], 1.5])
def test_a_header_of_another_program_is_not_taken_for_our_count(
    world: SyncWorld, consumer: Consumer, header: object
) -> None:
    message = created()
    with steps(world, fails_at=0):
        consumer.run(RECEIVE_EVENT, message, headers={"unexpected_tries": header, "first_failed_at": header})
    assert consumer.sent() == [(RECEIVE_EVENT, [message], 1)]


@pytest.mark.parametrize("has_time", [True, False])
def test_a_message_that_is_replayed_after_its_failures_changes_nothing_that_is_newer(
    world: SyncWorld, consumer: Consumer, *, has_time: bool
) -> None:
    """A plan that a later message set is what the customer pays for."""
    first = created()
    org_id = str(first["id"])
    consumer.run(RECEIVE_EVENT, first)
    older, newer = plan_change(org_id, "professional"), plan_change(org_id, "starter")
    if has_time:
        older["time"], newer["time"] = ((world.clock() - timedelta(hours=ago)).isoformat() for ago in (2, 1))
    with steps(world, fails_at=0):
        consumer.run(RECEIVE_EVENT, older)
    ((headers, _),) = consumer.take()
    world.wait(60)
    assert consumer.run(RECEIVE_EVENT, newer) is None
    world.wait(60)
    last = {"first_failed_at": headers["first_failed_at"], "unexpected_tries": MAX_UNEXPECTED_TRIES}

    def fail_to_apply(*arguments: Any) -> None:  # noqa: ANN401 - as SQLAlchemy calls it
        if "UPDATE organizations" in arguments[2]:
            raise StrangeError(SECRET)

    event.listen(world.database.engine, "before_cursor_execute", fail_to_apply)
    consumer.run(RECEIVE_EVENT, older, headers=last)
    event.remove(world.database.engine, "before_cursor_execute", fail_to_apply)
    by = Cause(actor="operator")
    handled = service_events.replay(world.database, world.catalog, world.clock, "/signup", str(older["id"]), by)
    assert handled is not None
    assert handled.status == "superseded"
    with world.database.read() as session:
        assert session.get_one(Organization, org_id).plan_tier == "starter"


def plan_change(org_id: str, tier: str) -> dict[str, Json]:
    envelope: dict[str, Json] = {"specversion": "1.0", "id": str(uuid4()), "source": "/signup", "subject": org_id}
    return {**envelope, "type": "organization.plan_changed", "data": {"plan_tier": tier}}


@pytest.mark.parametrize("provider", ["stripe"])
def test_a_link_is_synced_in_the_end_whatever_step_failed(
    world: SyncWorld, consumer: Consumer, provider: Provider
) -> None:
    consumer.run(SYNC_TO_STRIPE, world.create("First"))  # it also reads what the others need not read again
    second = world.create("Second")
    number_of_steps = count_steps(world, lambda: consumer.run(SYNC_TO_STRIPE, second))
    for number in range(number_of_steps):
        org_id = world.create(f"Acme {number}")
        with steps(world, fails_at=number):
            consumer.run(SYNC_TO_STRIPE, org_id)
        consumer.sent()
        assert world.link(org_id, provider).applied_version < world.link(org_id, provider).desired_version
        world.expire_lease()
        world.reconcile_until_idle(org_id)
        assert world.is_in_sync(org_id), number
    assert len(world.stripe_objects("customers")) == number_of_steps + 2


@pytest.mark.parametrize("hook", ["before_customer", "after_customer"])
def test_a_provider_that_raises_what_nobody_knows_is_retried_then_parked(
    world: SyncWorld, consumer: Consumer, hook: str
) -> None:
    def fail() -> None:
        raise StrangeError(SECRET)

    org_id = world.create("Acme")
    for tries in range(1, MAX_UNEXPECTED_ATTEMPTS + 1):
        setattr(world.providers["stripe"], hook, fail)
        with capture_logs() as logs:
            error = consumer.run(SYNC_TO_STRIPE, org_id)
        link = world.link(org_id, "stripe")
        assert (link.error_kind, link.attempts) == ("unexpected", tries)
        assert str(link.error_message).startswith("the program failed unexpectedly (StrangeError at test_unexpected")
        assert SECRET not in f"{link.error_message} {error} {logs}"
        assert "link_failed_unexpectedly" in {each["event"] for each in logs}
        world.wait(901)
    assert world.link(org_id, "stripe").state == "parked"
    assert "see `billing-sync parked`" in str(error)
