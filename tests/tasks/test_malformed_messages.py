"""Whatever lies in a queue, the worker takes it or throws it away, lives on, and tells nobody what was in it."""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import amqp
import kombu
import pytest
import redis as redis_client
from kombu import Connection
from sqlalchemy import select

from core.common.json_types import Json
from core.db.database import Database
from core.db.models.inbox import ServiceEvent
from core.inbox.event_schemas import MAX_SERVICE_EVENT_BYTES
from sandbox.server import Sandbox
from tests.support.deployment import Deployment, deployment
from tests.support.waiting import PATIENCE_SECONDS, until

NAME, EMAIL = "Zebra Confidential", "zelda@confidential.test"


pytestmark = pytest.mark.processes

Headers = Mapping[str, Json]
NO_HEADERS: Headers = {}


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.mark,)


@pytest.fixture(params=["redis", "rabbit"])
def broker_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def database(sqlite_url: str) -> Iterator[Database]:
    opened = Database(sqlite_url)
    opened.upgrade()
    yield opened
    opened.close()


@pytest.fixture
def deployed(
    database: Database, sqlite_url: str, broker_url: str, sandbox_server: Sandbox, tmp_path: Path
) -> Iterator[Deployment]:
    """One worker that logs all that it can."""
    assert database
    with deployment(sqlite_url, broker_url, sandbox_server.url, tmp_path) as ready:
        ready.environment["LOG_LEVEL"] = "DEBUG"
        ready.start("worker")
        yield ready


def created(name: str = NAME, **more: Json) -> dict[str, Json]:
    org_id = f"org_{uuid4()}"
    data: dict[str, Json] = {"name": name, "billing_email": EMAIL, **more}
    return {
        "specversion": "1.0",
        "id": org_id,
        "source": "/signup",
        "type": "organization.created",
        "subject": org_id,
        "data": data,
    }


class Queue:
    """The queue ``events``, written to byte by byte."""

    def __init__(self, url: str) -> None:
        self._connection = Connection(url)
        # RabbitMQ drops a message for a queue that no process has declared yet.
        arguments = {"x-queue-type": "quorum"} if url.startswith("amqp") else None
        kombu.Queue("events", queue_arguments=arguments)(self._connection.channel()).declare()

    def put(
        self,
        body: bytes,
        task: str | None = "events.receive",
        kind: str = "application/json",
        more: Headers = NO_HEADERS,
    ) -> None:
        headers = {"task": task, "id": str(uuid4()), "lang": "py", "argsrepr": NAME, **more} if task else {}
        encoding = "utf-8" if kind == "application/json" else "binary"
        self._connection.Producer().publish(
            body, exchange="", routing_key="events", content_type=kind, content_encoding=encoding, headers=headers
        )

    def put_raw(self, body: bytes, headers: Headers | None = None) -> None:
        """With no property that Celery sets."""
        channel: Any = self._connection.channel()  # the published types leave out how to publish
        if isinstance(channel, amqp.Channel):
            properties = {} if headers is None else {"application_headers": dict(headers)}
            channel.basic_publish(amqp.Message(body, **properties), routing_key="events")
        else:
            message = channel.prepare_message(body, headers=None if headers is None else dict(headers))
            channel.basic_publish(message, exchange="", routing_key="events")
        channel.close()

    def send(self, event: Json) -> None:
        self.put(json.dumps([[event], {}, {}]).encode())

    def close(self) -> None:
        self._connection.release()


@pytest.fixture
def queue(broker_url: str) -> Iterator[Queue]:
    opened = Queue(broker_url)
    yield opened
    opened.close()


def is_left(deployed: Deployment, broker_url: str) -> bool:
    """Whether a message lies in the queue once the worker has stopped."""
    deployed.running[0].terminate()
    deployed.running[0].wait(PATIENCE_SECONDS)
    with Connection(broker_url) as connection:
        return kombu.Queue("events")(connection.channel()).get(no_ack=True) is not None


def received(database: Database) -> dict[str, ServiceEvent]:
    with database.read() as session:
        return {row.id: row for row in session.scalars(select(ServiceEvent))}


def arrives(deployed: Deployment, queue: Queue, database: Database, event: dict[str, Json]) -> ServiceEvent:
    queue.send(event)
    until(lambda: event["id"] in received(database), "received", seconds=120)
    assert deployed.running[0].poll() is None
    return received(database)[str(event["id"])]


def test_a_message_that_is_no_json_is_thrown_away_and_not_opened(
    deployed: Deployment, queue: Queue, database: Database, tmp_path: Path
) -> None:
    arrives(deployed, queue, database, created("First Confidential"))
    queue.put(pickle.dumps([[Bomb(tmp_path / "opened")], {}, {}]), kind="application/x-python-serialize")
    queue.put(pickle.dumps([[created()], {}, {}]), kind="application/x-python-serialize")
    queue.put(json.dumps([[created()], {}, {}]).encode(), kind="text/made-up")
    queue.put(b'[[{"name": "' + NAME.encode())
    queue.put(b"\xff" + NAME.encode())
    assert arrives(deployed, queue, database, created("Last Confidential")).status == "applied"
    assert len(received(database)) == 2
    assert not (tmp_path / "opened").exists()
    until(lambda: deployed.logs.count("message_dropped") >= 5, "each told")


def test_a_message_that_is_no_task_is_thrown_away(
    deployed: Deployment, queue: Queue, database: Database, broker_url: str
) -> None:
    arrives(deployed, queue, database, created("First Confidential"))
    for body in (
        json.dumps(NAME).encode(),
        b"7",
        b"",
        json.dumps([NAME, NAME]).encode(),
        json.dumps({"args": [created()]}).encode(),
        json.dumps([[created()], {"more": 1}, {}, {}]).encode(),
        b"[" * 200_000 + b"]" * 200_000,
    ):
        queue.put(body)
        queue.put(body, task=None)
        queue.put(body, task="events.recieve")
    arrives(deployed, queue, database, created("Last Confidential"))
    dropped = [line for line in deployed.logs.splitlines() if "message_dropped" in line]
    assert any("unknown_task" in line and "events.recieve" in line for line in dropped)
    # Not given back: the next worker must not meet it again.
    assert not is_left(deployed, broker_url)


def test_a_header_that_makes_no_sense_ends_no_worker(deployed: Deployment, queue: Queue, database: Database) -> None:
    arrives(deployed, queue, database, created("First Confidential"))
    senseless: tuple[Json, ...] = ("soon", 7, [], {}, None)
    for header in ("eta", "expires", "timelimit", "retries", "headers", "id"):
        for task in ("events.receive", "celery.chunks", "made.up"):
            for value in senseless:
                queue.put(json.dumps([[created()], {}, {}]).encode(), task, more={header: value})
    arrives(deployed, queue, database, created("Last Confidential"))


@pytest.mark.parametrize(
    "header",
    [{"retries": None}, {"retries": "abc"}, {"retries": -5}, {"timelimit": [1]}, {"timelimit": "abc"}],
    ids=str,
)
def test_a_good_message_with_a_senseless_number_is_received(
    deployed: Deployment, queue: Queue, database: Database, broker_url: str, header: dict[str, Json]
) -> None:
    """Also one that waits first: Celery reads the number in a timer then."""
    events = [created("First Confidential"), created("Second Confidential")]
    eta = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    more: tuple[dict[str, Json], ...] = (header, {**header, "eta": eta})
    for event, headers in zip(events, more, strict=True):
        queue.put(json.dumps([[event], {}, {}]).encode(), more=headers)
    until(lambda: {str(each["id"]) for each in events} <= received(database).keys(), "both are received")
    assert not is_left(deployed, broker_url)


def test_a_task_of_a_wrong_form_takes_no_thread_from_the_worker(
    deployed: Deployment, queue: Queue, database: Database, broker_url: str
) -> None:
    """An error outside the task is lost in its thread: the message would stay unacknowledged for good."""
    arrives(deployed, queue, database, created("First Confidential"))
    parts: tuple[Json, ...] = (7, "text", [7], [{}], {"task": 7}, [{"task": "made.up"}])
    wrong: list[object] = [[[created()], {}, embed] for embed in (7, "text", [7], {"id": "x"}, {"delivery_info": 7})]
    wrong += [[[created()], kwargs, {}] for kwargs in (None, [], "text", [["event", created()]])]
    wrong += [[args, {}, {}] for args in (7, None, "text", created())]
    for name in ("callbacks", "errbacks", "chain", "chord"):
        wrong += [[[created()], {}, {name: part}] for part in parts]
        wrong += [{"args": [created()], "kwargs": {}, name: part} for part in parts]
    for body in wrong:
        queue.put(json.dumps(body).encode())
    arrives(deployed, queue, database, created("Last Confidential"))
    until(lambda: deployed.logs.count("message_dropped") == len(wrong), "each told")
    assert len(received(database)) == 2
    assert "raised unexpected" not in deployed.logs
    assert not is_left(deployed, broker_url)


def test_what_a_sender_lets_follow_a_task_is_no_reason_to_drop_it(
    deployed: Deployment, queue: Queue, database: Database
) -> None:
    """As Celery writes it, by its second protocol, by its first, and by both at once."""
    following: dict[str, Json] = {"task": "events.receive", "args": [], "kwargs": {}, "options": {"queue": "events"}}
    second, first, both = (created(f"{word} Confidential") for word in ("Second", "First", "Both"))
    queue.put(json.dumps([[second], {}, {"callbacks": [following], "errbacks": None, "chain": None}]).encode())
    queue.put(json.dumps({"task": "events.receive", "id": "1", "args": [first], "kwargs": {}}).encode(), task=None)
    queue.put(json.dumps({"args": [both], "kwargs": {}, "callbacks": None}).encode())
    sent = {str(each["id"]) for each in (second, first, both)}
    until(lambda: sent <= received(database).keys(), "received", seconds=120)
    assert deployed.running[0].poll() is None


def envelope(**more: Json) -> dict[str, Json]:
    """A message as it lies in a list of Redis."""
    properties: dict[str, Json] = {
        "correlation_id": "1",
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": "events"},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": str(uuid4()),
    }
    return {
        "body": base64.b64encode(json.dumps([[created()], {}, {}]).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": "events.receive", "id": str(uuid4()), "lang": "py"},
        "properties": properties,
        **more,
    }


def without(name: str, part: str | None = None, **more: Json) -> dict[str, Json]:
    whole = envelope()
    inner = whole if part is None else whole[part]
    assert isinstance(inner, dict)
    del inner[name]
    inner.update(more)
    return whole


NO_ENVELOPES: tuple[bytes, ...] = (
    b"garbage",
    b"",
    b"\x00\xff\xfe",
    b"7",
    b"null",
    b'"text"',
    b"[]",
    b"{}",
    b"[" * 200_000,
    b"[" * 200_000 + b"]" * 200_000,
    b'{"body": "eyI',
    b'{"__type__": "datetime", "__value__": "soon"}',
    b'{"__type__": "decimal", "__value__": "soon"}',
    *(
        json.dumps(each).encode()
        for each in (
            without("properties"),
            without("delivery_tag", "properties"),
            without("delivery_tag", "properties", delivery_tag=["x"]),
            without("delivery_info", "properties"),
            without("delivery_info", "properties", delivery_info=7),
            without("delivery_info", "properties", delivery_info={"exchange": ""}),
            without("delivery_info", "properties", delivery_info={"exchange": [], "routing_key": {}}),
            without("body_encoding", "properties", body_encoding="rot13"),
            without("body_encoding", "properties", body_encoding=7),
            envelope(properties=None),
            envelope(properties="text"),
            envelope(properties=[7]),
            envelope(body="A"),
            envelope(body="\udcff"),
            envelope(body=7),
            envelope(body={"args": []}),
            envelope(headers="text"),
            envelope(headers=[7]),
        )
    ),
)


def test_what_is_no_message_at_all_is_thrown_away(
    database: Database, sqlite_url: str, redis_url: str, sandbox_server: Sandbox, tmp_path: Path
) -> None:
    """Anything in the lists of Redis that Celery did not write itself: the worker goes on with what is behind it."""
    assert database
    queue = Queue(redis_url)
    with deployment(sqlite_url, redis_url, sandbox_server.url, tmp_path) as deployed:
        with redis_client.Redis.from_url(redis_url) as client:
            deployed.start("worker")
            arrives(deployed, queue, database, created("First Confidential"))
            for item in NO_ENVELOPES:
                client.lpush("events", item)
                client.lpush("stripe", item)
            arrives(deployed, queue, database, created("Last Confidential"))
            until(lambda: client.llen("stripe") == 0, "the other queue is empty, too")
            until(lambda: client.hlen("unacked") == 0, "nothing is held")
            assert deployed.running[0].poll() is None
        assert deployed.logs.count("message_dropped") == 2 * len(NO_ENVELOPES)
    queue.close()


def test_an_envelope_with_parts_left_out_is_read_or_thrown_away(
    database: Database, sqlite_url: str, redis_url: str, sandbox_server: Sandbox, tmp_path: Path
) -> None:
    assert database
    queue = Queue(redis_url)
    none: tuple[Json, ...] = (None, {})
    kinds: tuple[Json, ...] = (None, 7, [], {}, "made-up")
    with (
        deployment(sqlite_url, redis_url, sandbox_server.url, tmp_path) as deployed,
        redis_client.Redis.from_url(redis_url) as client,
    ):
        deployed.start("worker")
        arrives(deployed, queue, database, created("First Confidential"))
        for each in (
            *(without(name) for name in ("body", "content-encoding", "content-type", "headers")),
            *(envelope(headers=headers) for headers in none),
            *(envelope(**{name: kind}) for name in ("content-type", "content-encoding") for kind in kinds),
            envelope(body=None),
            envelope(body=""),
            envelope(headers={"task": "events.receive", "id": "1", "compression": "made-up"}),
            envelope(headers={"task": "events.receive", "id": "1", "compression": "application/x-gzip"}),
            envelope(headers={"task": "events.receive", "id": "1", "more": "x" * 2**20}),
            without("delivery_info", "properties", delivery_info={"exchange": None, "routing_key": "events"}),
            without("delivery_tag", "properties", delivery_tag=7),
        ):
            client.lpush("events", json.dumps(each))
        arrives(deployed, queue, database, created("Last Confidential"))
        until(lambda: client.hlen("unacked") == 0, "nothing is held")
        assert deployed.running[0].poll() is None
    queue.close()


def test_headers_of_a_wrong_form_end_no_worker(
    deployed: Deployment, queue: Queue, database: Database, broker_url: str
) -> None:
    arrives(deployed, queue, database, created("First Confidential"))
    wrong: tuple[Json, ...] = (7, [], {}, ["events.receive"], {"events.receive": 1}, True)
    for body in (b"garbage", json.dumps([[created()], {}, {}]).encode(), json.dumps({"task": ["x"], "id": 1}).encode()):
        for task in wrong:
            queue.put(body, "events.receive", more={"task": task})
        queue.put(body, "made.up", more={"id": None})
        for name in ("compression", "root_id", "parent_id", "group", "origin", "ignore_result", "delivery_info"):
            for value in wrong:
                queue.put(body, "events.receive", more={name: value})
                queue.put(body, "made.up", more={name: value})
        queue.put_raw(body)
        queue.put_raw(body, {"task": "made.up"})
        queue.put_raw(body, {"task": "events.receive"})
        queue.put_raw(body, {"task": "events.receive", "more": "x" * 100_000})
    arrives(deployed, queue, database, created("Last Confidential"))
    assert not is_left(deployed, broker_url)


def test_a_message_that_is_too_large_is_refused_by_its_size_and_not_kept(
    deployed: Deployment, queue: Queue, database: Database
) -> None:
    event = created(note="x" * MAX_SERVICE_EVENT_BYTES)
    row = arrives(deployed, queue, database, event)
    size = len(json.dumps(event))
    assert (row.status, row.data) == ("rejected", None)
    assert row.reason == f"the message has {size} bytes; at most {MAX_SERVICE_EVENT_BYTES} are accepted"
    huge = created(note="x" * 20 * 2**20)
    assert arrives(deployed, queue, database, huge).data is None
