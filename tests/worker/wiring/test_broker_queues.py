"""A broker that responds and that no worker can use: the start, `doctor` and `status` say what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis as redis_client
from kombu import Connection, Exchange, Queue

from core.db.database import Database
from core.events import outbox
from core.org_manager import OrgManager
from sandbox.server import Sandbox
from tests.chaos.servers import rabbit, rabbit_is_installed
from tests.support import console
from tests.support.deployment import deployment
from tests.support.waiting import until
from worker.config.settings import Settings
from worker.wiring import broker_probe
from worker.wiring.broker_queues import QueueProblem

ANEW = "the next worker makes it anew"


@contextmanager
def foreign_queue(url: str, name: str, messages: int = 0, **options: Any) -> Iterator[None]:  # noqa: ANN401 - kombu's own
    with Connection(url) as connection:
        Queue(name, channel=connection.channel()).delete()
        channel = connection.channel()
        queue = Queue(name, channel=channel, **options)
        queue.queue_declare()
        for _ in range(messages):
            connection.Producer().publish("{}", exchange="", routing_key=name, retry=False)
        try:
            yield
        finally:
            queue.delete()


def problems(url: str) -> tuple[QueueProblem, ...]:
    return broker_probe.probe(Settings(celery_broker_url=url)).queue_problems


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({}, "has x-queue-type classic and must have quorum"),
        ({"durable": False}, "has durable false and must have true"),
        ({"queue_arguments": {"x-max-priority": 10}}, "has x-max-priority 10 and must have none"),
        (
            {"queue_arguments": {"x-queue-type": "quorum", "x-max-length": 5}},
            "has x-max-length 5 and must have none",
        ),
    ],
    ids=["classic", "transient", "priorities", "bounded"],
)
def test_a_queue_of_another_form_is_named_with_what_differs(
    rabbit_url: str, options: Mapping[str, Any], difference: str
) -> None:
    before = problems(rabbit_url)
    with foreign_queue(rabbit_url, "webhooks", **options):
        (found,) = problems(rabbit_url)
    assert before == problems(rabbit_url) == ()
    assert found.text == f"the queue webhooks {difference}"
    assert found.advice == f"`rabbitmqctl delete_queue webhooks --if-empty`; {ANEW}"


def test_messages_that_are_nowhere_else_are_not_deleted(rabbit_url: str) -> None:
    with foreign_queue(rabbit_url, "events", messages=2), foreign_queue(rabbit_url, "stripe", messages=3):
        events, stripe = problems(rabbit_url)
    assert events.advice == (
        "it has 2 messages, which may be from other services and nowhere else: move them with a shovel of RabbitMQ, "
        "then `rabbitmqctl delete_queue events --if-empty`"
    )
    assert stripe.advice == "`rabbitmqctl delete_queue stripe`; the sweep sends its 3 messages again"


def test_an_exchange_of_another_type_is_named(rabbit_url: str) -> None:
    with Connection(rabbit_url) as connection:
        exchange = Exchange("billing-sync", type="direct", channel=connection.channel())
        exchange.delete()
        exchange.declare()
        try:
            (found,) = problems(rabbit_url)
        finally:
            exchange.delete()
    assert found.text == "the exchange billing-sync has type direct and must have topic"


@pytest.mark.processes
@pytest.mark.skipif(not rabbit_is_installed(), reason="RabbitMQ is not installed: its own node must run out of disk")
def test_an_alarm_of_rabbitmq_is_told(sqlite_url: str, tmp_path: Path) -> None:
    Database(sqlite_url).upgrade()
    folder = console.prepare(tmp_path)
    with rabbit(disk_free_limit="100000GB") as server:
        settings = {"CELERY_BROKER_URL": server.url, "DATABASE_URL": sqlite_url}
        status = " ".join(console.run(folder, "status", settings=settings).stdout.split())
        report = json.loads(console.run(folder, "doctor", "--json", settings=settings).stdout)
    assert "broker: accepts no message, because its alarm is on (memory or disk); work stays in the database" in status
    (found,) = [
        each for subject in report["subjects"] for each in subject["findings"] if each["code"] == "broker_refuses"
    ]
    assert found["message"].endswith("refuses each message: its alarm is on (memory or disk)")
    assert found["advice"] == "`rabbitmqctl status` names the alarm; free memory or disk of RabbitMQ"


@pytest.mark.processes
@pytest.mark.skipif(not rabbit_is_installed(), reason="RabbitMQ is not installed: its own node must have another user")
def test_a_user_without_permissions_is_told_and_one_with_those_of_a_worker_is_not() -> None:
    with rabbit() as server:
        url = server.url.replace("guest:guest", "narrow:word")
        with Connection(server.url) as connection:
            Exchange("billing-sync", type="topic", channel=connection.channel()).declare()
        server.control("add_user", "narrow", "word")
        server.control("set_permissions", "narrow", "^$", "^$", "^$")
        (found,) = problems(url)
        server.control("set_permissions", "narrow", ".*", "^billing-sync$", ".*")
        narrow = broker_probe.probe(Settings(celery_broker_url=url))
    assert found.text.startswith("the user has not the permissions (ACCESS_REFUSED - access to exchange 'billing-sync'")
    assert found.advice.startswith("""`rabbitmqctl set_permissions USER ".*" ".*" ".*"`""")
    assert (narrow.responds, narrow.refusal, narrow.queue_problems) == (True, None, ())


@pytest.mark.processes
@pytest.mark.parametrize("command", ["worker", "relay", "beat"])
def test_no_process_starts_with_a_queue_that_it_cannot_use(
    rabbit_url: str, sqlite_url: str, tmp_path: Path, command: str
) -> None:
    settings = {"CELERY_BROKER_URL": rabbit_url, "DATABASE_URL": sqlite_url}
    with foreign_queue(rabbit_url, "lago"):
        ended = console.run(console.prepare(tmp_path), command, settings=settings)
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr
    sentence = " ".join(ended.stderr.split())
    assert (
        f"`billing-sync {command}` cannot use the broker: the queue lago has x-queue-type classic and must have quorum "
        f"(`rabbitmqctl delete_queue lago --if-empty`; {ANEW})"
    ) in sentence


@pytest.mark.processes
def test_a_relay_outlives_a_queue_that_somebody_replaces(
    rabbit_url: str, sqlite_url: str, tmp_path: Path, sandbox_server: Sandbox
) -> None:
    Database(sqlite_url).upgrade()
    with deployment(sqlite_url, rabbit_url, sandbox_server.url, tmp_path) as deployed:
        relay = deployed.start("relay")
        until(lambda: "The relay runs" in deployed.logs, "the relay runs")
        manager = OrgManager(database_url=sqlite_url)
        with foreign_queue(rabbit_url, "stripe"):
            manager.create_organization("Zebra")
            until(lambda: "broker_away" in deployed.logs, "it is refused", details=lambda: deployed.logs)
            assert "PreconditionFailed" in deployed.logs
        until(lambda: not is_unpublished(sqlite_url), "published", details=lambda: deployed.logs)
        assert relay.poll() is None
        manager.close()


def is_unpublished(url: str) -> bool:
    database = Database(url)
    try:
        with database.read() as session:
            return outbox.has_pending(session)
    finally:
        database.close()


def shown(folder: Path, settings: Mapping[str, str]) -> tuple[str, list[str], str]:
    """What `status`, `status --json` and `doctor` say of the queues."""
    status = " ".join(console.run(folder, "status", settings=settings).stdout.split())
    document = json.loads(console.run(folder, "status", "--json", settings=settings).stdout)
    report = json.loads(console.run(folder, "doctor", "--json", settings=settings).stdout)
    found = [each for subject in report["subjects"] for each in subject["findings"] if each["code"] == "queue_type"]
    return status, document["broker"]["queue_problems"], " ".join(each["message"] + each["advice"] for each in found)


@pytest.mark.processes
def test_status_does_not_say_that_all_is_well_with_rabbitmq(rabbit_url: str, sqlite_url: str, tmp_path: Path) -> None:
    Database(sqlite_url).upgrade()
    settings = {"CELERY_BROKER_URL": rabbit_url, "DATABASE_URL": sqlite_url}
    with foreign_queue(rabbit_url, "events"):
        status, queue_problems, found = shown(console.prepare(tmp_path), settings)
    problem = "the queue events has x-queue-type classic and must have quorum"
    assert f"broker: responds, but no worker can use it: {problem};" in status
    assert queue_problems == [problem]
    assert found == f"no worker can use the broker: {problem}`rabbitmqctl delete_queue events --if-empty`; {ANEW}"


@pytest.mark.processes
def test_status_does_not_say_that_all_is_well_with_redis(redis_url: str, sqlite_url: str, tmp_path: Path) -> None:
    Database(sqlite_url).upgrade()
    folder, settings = console.prepare(tmp_path), {"REDIS_URL": redis_url, "DATABASE_URL": sqlite_url}
    with redis_client.Redis.from_url(redis_url) as client:
        client.set("events", "of somebody else")
        status, queue_problems, found = shown(folder, settings)
        ended = console.run(folder, "worker", settings=settings)
        client.delete("events")
    problem = "the key events is a string and must be a list"
    assert f"broker: responds, but no worker can use it: {problem};" in status
    assert queue_problems == [problem]
    assert "`redis-cli rename events events.other`" in found
    assert ended.returncode != 0
    assert f"`billing-sync worker` cannot use the broker: {problem}" in " ".join(ended.stderr.split())
