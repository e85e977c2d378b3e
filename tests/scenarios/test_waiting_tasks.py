"""What waits in a queue or in a worker's memory holds up nothing else, and nobody is told what is in it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis as redis_client
from celery import Celery, Task
from sqlalchemy import select

from core.catalog.plans import DEFAULT_PLANS_FILE
from core.db.database import Database
from core.db.models.inbox import ServiceEvent
from core.db.models.jobs import JobLock
from sandbox.server import Sandbox
from tasks.routing import QUEUE_BY_TASK, RECEIVE_EVENT, SWEEP, SYNC_TO_LAGO
from tests.support.closed_database import closed_to_all
from tests.support.deployment import Deployment, deployment
from tests.support.waiting import PATIENCE_SECONDS, until
from worker.config.settings import Settings
from worker.wiring.celery_app import build

NAME, EMAIL = "Zebra Confidential", "zelda@confidential.test"


@pytest.fixture
def elsewhere(redis_url: str) -> Iterator[Celery]:
    """Another service."""
    with Celery("elsewhere", broker=redis_url, set_as_current=False) as app:
        yield app


@pytest.fixture
def deployed(database: Database, redis_url: str, sandbox_server: Sandbox, tmp_path: Path) -> Iterator[Deployment]:
    """Nothing runs yet."""
    url = database.url.render_as_string(hide_password=False)
    with deployment(url, redis_url, sandbox_server.url, tmp_path) as ready:
        yield ready


def event(event_type: str = "organization.created", **data: str) -> dict[str, object]:
    number = str(uuid4())
    return {
        "specversion": "1.0",
        "id": number,
        "source": "/signup",
        "type": event_type,
        "subject": f"org_{number}",
        "partitionkey": EMAIL,
        "data": data or {"name": f"{NAME} {number}", "billing_email": EMAIL},
    }


def send(elsewhere: Celery, task: str, *messages: Any, **options: Any) -> None:  # noqa: ANN401 - messages, and Celery's own
    """One message for each of the rounds."""
    with elsewhere.producer_pool.acquire(block=True) as producer:
        for arguments in messages:
            elsewhere.send_task(
                task, args=[arguments], queue=QUEUE_BY_TASK[task], producer=producer, ignore_result=True, **options
            )


def count(database: Database) -> int:
    with database.read() as session:
        return len(session.scalars(select(ServiceEvent.id)).all())


@pytest.mark.processes
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_crowd_of_waits_neither_stops_nor_narrows_a_worker(
    deployed: Deployment, database: Database, redis_url: str, elsewhere: Celery
) -> None:
    org_ids = [f"org_nobody-{number}" for number in range(1100)]
    deployed.environment["CELERY_REMOTE_CONTROL"] = "true"  # to ask the worker how many messages it takes at once
    with redis_client.Redis.from_url(redis_url) as server:
        send(elsewhere, SYNC_TO_LAGO, *org_ids, countdown=30)
        deployed.start("worker")
        until(lambda: server.hlen("unacked") >= len(org_ids), "the worker holds them all")
        send(elsewhere, RECEIVE_EVENT, event())
        until(lambda: count(database) == 1, "an event passes by them")
        assert server.hlen("unacked") >= len(org_ids), "their time had come before the event"
        until(lambda: server.hlen("unacked") == 0, "their time has come")
    stats = elsewhere.control.inspect(timeout=10).stats() or {}
    assert [worker["prefetch_count"] for worker in stats.values()] == [8]


@pytest.mark.processes
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_backlog_of_events_does_not_hold_up_the_sweep(
    deployed: Deployment, database: Database, elsewhere: Celery
) -> None:
    backlog = 2000
    send(elsewhere, RECEIVE_EVENT, *(event("membership.added", user_id=f"u{number}") for number in range(backlog)))
    deployed.start("worker")
    until(lambda: count(database) > 0, "the worker works")
    elsewhere.send_task(SWEEP, queue=QUEUE_BY_TASK[SWEEP], expires=60, ignore_result=True)

    def swept() -> bool:
        with database.read() as session:
            return session.get(JobLock, SWEEP) is not None

    until(swept, "links_swept")
    assert count(database) < backlog


@pytest.mark.processes
@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_a_retried_event_is_shown_to_nobody(
    deployed: Deployment, database: Database, postgres_server: str, elsewhere: Celery
) -> None:
    deployed.start("worker")
    send(elsewhere, RECEIVE_EVENT, event(), argsrepr="()")
    until(lambda: count(database) == 1, "the worker works")
    with watched(elsewhere) as seen, closed_to_all(database, postgres_server):
        send(elsewhere, RECEIVE_EVENT, event(), argsrepr="()")
        until(lambda: sum(each["type"] == "task-retried" for each in seen) > 1, "tried and tried again")
    until(lambda: count(database) == 2, "received")
    assert {"task-sent", "task-received", "task-retried"} <= {each["type"] for each in seen}
    assert [each for each in seen if NAME in str(each) or EMAIL in str(each)] == []


@contextmanager
def watched(app: Celery) -> Iterator[list[dict[str, Any]]]:
    """What workers tell Flower."""
    seen: list[dict[str, Any]] = []
    with app.connection() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": seen.append})
        thread = threading.Thread(target=receiver.capture)
        thread.start()
        try:
            until(lambda: len(seen) > 0, "a heartbeat")
            yield seen
        finally:
            receiver.should_stop = True
            thread.join(PATIENCE_SECONDS)


@pytest.fixture
def task(database: Database, tmp_path: Path) -> Iterator[Task[Any, Any]]:
    """``events.receive`` without a broker."""
    settings = {
        "data_dir": tmp_path,
        "database_url": database.url.render_as_string(hide_password=False),
        "plans_file": DEFAULT_PLANS_FILE,
        "stripe_secret_key": "sk_test_nobody",
        "stripe_api_base": "http://127.0.0.1:1",
        "lago_api_key": "nobody",
        "lago_api_url": "http://127.0.0.1:1",
        "lago_stripe_provider_code": "stripe_main",
    }
    app = build(Settings.model_validate(settings))
    app.loader.import_default_modules()
    yield app.tasks[RECEIVE_EVENT]
    app.close_runtime()


@pytest.mark.parametrize(
    ("sent", "named"),
    [
        ((), {}),
        ((), {EMAIL: 1}),
        ((), {"self": 1}),
        ((), {"event": {}, EMAIL: 1}),
        (("the event", 1), {}),
        (("the event",), {"event": {}}),
    ],
    ids=["nothing", "a wrong name", "self", "one name too many", "two", "twice"],
)
def test_however_an_event_is_sent_it_gets_one_verdict(
    database: Database, task: Task[Any, Any], sent: tuple[object, ...], named: dict[str, object]
) -> None:
    for _ in range(2):
        task.apply(args=sent, kwargs=named, throw=True)
    with database.read() as session:
        [kept] = session.scalars(select(ServiceEvent))
    assert (kept.status, kept.reason) == ("rejected", "arguments: pass exactly one, the event")


@pytest.mark.parametrize(("sent", "named"), [((event(),), {}), ((), {"event": event()})], ids=["by place", "by name"])
def test_an_event_may_be_sent_by_place_and_by_name(
    database: Database, task: Task[Any, Any], sent: tuple[object, ...], named: dict[str, object]
) -> None:
    task.apply(args=sent, kwargs=named, throw=True)
    with database.read() as session:
        assert [row.status for row in session.scalars(select(ServiceEvent))] == ["applied"]
