"""What keeps workers from using our queues although the broker responds: something else has the name of a queue.

A queue in RabbitMQ keeps the type and the arguments that it was made with. A declaration with others is refused, and
so is every worker. In Redis a queue is a list. Nothing is made or changed: what is absent is left to the first worker.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import amqp
from kombu import Connection, Exchange, Queue
from redis import Redis

from tasks.routing import QUEUE_BY_TASK, QUEUES, RECEIVE_EVENT

OUR_EXCHANGE: Final = "billing-sync"
QUORUM: Final = {"x-queue-type": "quorum"}
_DIFFERENCE: Final = re.compile(r"inequivalent arg '([^']+)' for .*: received (.+) but current is (.+)")
_TYPED_VALUE: Final = re.compile(r"the value '([^']*)' of type '\w+'")
_DEFAULTS: Final = {"x-queue-type": "classic"}
# The messages of other services are nowhere else. The sweep sends all others again.
_ONLY_RECORD: Final = QUEUE_BY_TASK[RECEIVE_EVENT]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueProblem:
    """``text`` goes on after "no worker can use the broker: "."""

    text: str
    advice: str


def problems_in_rabbitmq(connection: Connection) -> Iterator[QueueProblem]:
    """Raises the errors of kombu and amqp if the broker cannot be asked."""
    vhost = connection.virtual_host
    on_vhost = "" if vhost == "/" else f"-p {vhost} "
    try:
        yield from _problems(connection, on_vhost)
    except amqp.AccessRefused as refused:
        advice = f"""`rabbitmqctl set_permissions {on_vhost}USER ".*" ".*" ".*"` with the user of the broker's URL"""
        yield QueueProblem(text=f"the user has not the permissions ({refused.reply_text})", advice=advice)


def _problems(connection: Connection, on_vhost: str) -> Iterator[QueueProblem]:
    difference = _exchange_difference(connection)
    if difference is not None:
        advice = f"delete the exchange {OUR_EXCHANGE} in RabbitMQ's management page; the next worker makes it anew"
        yield QueueProblem(text=f"the exchange {OUR_EXCHANGE} {difference}", advice=advice)
    for name in QUEUES:
        found = _queue_difference(connection, name)
        if found is not None:
            difference, messages = found
            yield QueueProblem(text=f"the queue {name} {difference}", advice=_deletion(name, messages, on_vhost))


def problems_in_redis(client: Redis) -> Iterator[QueueProblem]:
    """Raises ``RedisError``. An empty list does not exist."""
    for name in QUEUES:
        kind: Any = client.type(name)
        if kind not in {"list", "none"}:
            advice = f"`redis-cli rename {name} {name}.other`, or give Celery a database of its own: redis://…/1"
            yield QueueProblem(text=f"the key {name} is a {kind} and must be a list", advice=advice)


def _queue_difference(connection: Connection, name: str) -> tuple[str, int] | None:
    """How the queue differs from ours, and how many messages wait in it. Each refusal closes its channel."""
    try:
        with connection.channel() as channel:
            declared: Any = Queue(name, channel=channel).queue_declare(passive=True)
            messages: int = declared.message_count
    except amqp.NotFound:
        return None
    except amqp.ResourceLocked:
        return "belongs to one connection alone (exclusive)", 0
    try:
        with connection.channel() as channel:
            Queue(name, channel=channel, queue_arguments=QUORUM).queue_declare()
    except amqp.PreconditionFailed as refused:
        return _describe(refused), messages
    return None


def _exchange_difference(connection: Connection) -> str | None:
    try:
        with connection.channel() as channel:
            Exchange(OUR_EXCHANGE, channel=channel).declare(passive=True)
    except amqp.NotFound:
        return None
    try:
        with connection.channel() as channel:
            Exchange(OUR_EXCHANGE, type="topic", channel=channel).declare()
    except amqp.PreconditionFailed as refused:
        return _describe(refused)
    return None


def _describe(refused: amqp.PreconditionFailed) -> str:
    """In the server's own words where they are not known: they name arguments only."""
    matched = _DIFFERENCE.search(str(refused.reply_text))
    if matched is None:
        return f"is refused: {refused.reply_text}"
    argument, ours, theirs = matched.groups()
    return f"has {argument} {_value(argument, theirs)} and must have {_value(argument, ours)}"


def _value(argument: str, text: str) -> str:
    typed = _TYPED_VALUE.search(text)
    value = typed.group(1) if typed is not None else text.strip("'")
    return _DEFAULTS.get(argument, value) if value == "none" else value


def _deletion(name: str, messages: int, on_vhost: str) -> str:
    delete = f"rabbitmqctl {on_vhost}delete_queue {name}"
    if not messages:
        return f"`{delete} --if-empty`; the next worker makes it anew"
    if name != _ONLY_RECORD:
        return f"`{delete}`; the sweep sends its {messages} messages again"
    return (
        f"it has {messages} messages, which may be from other services and nowhere else: move them with a shovel of "
        f"RabbitMQ, then `{delete} --if-empty`"
    )
