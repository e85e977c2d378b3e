"""Broker and Redis: reachable, encrypted to another network, and a Redis that throws no message away."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

import amqp
from kombu import Connection, Queue
from kombu.exceptions import KombuError
from redis import Redis
from redis.exceptions import RedisError

from tasks.routing import QUEUES
from worker.config.broker import transport_options
from worker.config.settings import Settings, SettingsError
from worker.doctor.findings import DoctorFinding, error, not_checked, not_set, ok, warning
from worker.doctor.inputs import DoctorInputs
from worker.doctor.settings import is_remote
from worker.wiring import broker_probe

REDIS_SECONDS: Final = 3.0
MIN_RABBITMQ_VERSION: Final = (4, 0, 1)
QUORUM: Final = {"x-queue-type": "quorum"}


def check(inputs: DoctorInputs) -> list[DoctorFinding]:
    settings = inputs.settings
    if settings.is_embedded:
        return [not_set("broker_not_set", "none: `billing-sync up` does all work", "for more processes set REDIS_URL")]
    try:
        address, responds = broker_probe.probe(settings.broker)
    except SettingsError as invalid:
        return [
            error("broker_url_invalid", str(invalid), "no process starts", "correct REDIS_URL or CELERY_BROKER_URL")
        ]
    except ValueError:
        message = "the broker's URL cannot be parsed"
        return [error("broker_url_invalid", message, "no process starts", "correct REDIS_URL or CELERY_BROKER_URL")]
    if not responds:
        consequence = "changes stay in the database until it does; nothing is lost"
        advice = "start it, or correct REDIS_URL or CELERY_BROKER_URL; then `billing-sync status`"
        return [error("broker_unreachable", f"{address} does not respond", consequence, advice)]
    found = [*_encryption(settings.broker, address), *_queues(settings)]
    return found or [ok("broker", f"{address} responds")]


def check_redis(inputs: DoctorInputs) -> list[DoctorFinding]:
    """The Redis that processes share, which may be the broker too."""
    settings = inputs.settings
    if settings.redis is None:
        if settings.is_embedded:
            return [not_set("redis_not_set", "none; one process needs no shared rate limits")]
        advice = "set REDIS_URL for every process"
        consequence = "each process uses the providers' full rate limits, so together they exceed them"
        return [warning("redis_not_shared", "REDIS_URL is not set", consequence, advice)]
    try:
        with Redis.from_url(
            settings.redis, socket_timeout=REDIS_SECONDS, socket_connect_timeout=REDIS_SECONDS, decode_responses=True
        ) as client:
            server, memory = client.info("server"), client.info("memory")
    except (RedisError, OSError, ValueError) as failed:
        consequence = "each process uses the providers' full rate limits"
        message = f"Redis does not respond ({type(failed).__name__})"
        return [error("redis_unreachable", message, consequence, "start it, or correct REDIS_URL")]
    found = list(_redis_findings(server, memory, is_broker=settings.redis == settings.broker))
    return found or [ok("redis", f"Redis {server.get('redis_version', '?')}, noeviction")]


def _redis_findings(server: dict[str, Any], memory: dict[str, Any], *, is_broker: bool) -> Iterator[DoctorFinding]:
    policy = str(memory.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        consequence = (
            "if its memory is full it deletes queued messages; the sweep finds their work only later"
            if is_broker
            else "if its memory is full it deletes rate limits, and the providers respond 429"
        )
        advice = "`redis-cli config set maxmemory-policy noeviction`, and the same in redis.conf"
        yield warning("redis_evicts", f"its eviction policy is {policy}", consequence, advice)
    if str(server.get("redis_mode", "standalone")) == "cluster":
        message = "it is a cluster"
        yield error("redis_cluster", message, "Celery's queues need one node", "set REDIS_URL to a single server")


def _encryption(url: str, address: str) -> Iterator[DoctorFinding]:
    parts = urlsplit(url)
    if parts.scheme in {"redis", "amqp", "pyamqp"} and is_remote(parts.hostname):
        secure = {"redis": "rediss", "amqp": "amqps", "pyamqp": "amqps"}[parts.scheme]
        consequence = "its password and the ids of your organizations cross the network unencrypted"
        yield warning("broker_unencrypted", f"{address} is not encrypted", consequence, f"use {secure}:// in its URL")


def _queues(settings: Settings) -> Iterator[DoctorFinding]:
    """RabbitMQ only: a queue of another type than quorum loses countdowns, and workers cannot declare it."""
    if not settings.broker.startswith(("amqp", "pyamqp")):
        return
    try:
        with Connection(
            settings.broker, transport_options=transport_options(settings.broker), connect_timeout=4
        ) as connection:
            version = _version_of(connection)
            wrong = [name for name in QUEUES if _is_of_other_type(connection, name)]
    except (KombuError, OSError, amqp.AMQPError) as failed:
        yield not_checked("queues_unread", f"the types of the queues cannot be read ({type(failed).__name__})")
        return
    if version and version < MIN_RABBITMQ_VERSION:
        shown = ".".join(map(str, version))
        consequence = "countdowns in its quorum queues may be lost"
        yield error("rabbitmq_old", f"RabbitMQ is version {shown}", consequence, "upgrade it to 4.0.1 or newer")
    if wrong:
        consequence = "no worker starts: RabbitMQ refuses to use it as a quorum queue"
        advice = f"`rabbitmqctl delete_queue {wrong[0]}`; the sweep sends its work again"
        yield error("queue_type", f"not of the type quorum: {', '.join(wrong)}", consequence, advice)


def _version_of(connection: Connection) -> tuple[int, ...]:
    """As the server says when a client connects; empty if it does not."""
    properties: object = getattr(connection.connection, "server_properties", None)
    version = properties.get("version", "") if isinstance(properties, dict) else ""
    numbers = str(version).split(".")
    return tuple(map(int, numbers)) if all(number.isdigit() for number in numbers) else ()


def _is_of_other_type(connection: Connection, name: str) -> bool:
    """Declares nothing new: a queue that is absent is found first, passively. Each refusal closes its channel."""
    try:
        with connection.channel() as channel:
            Queue(name, channel=channel).queue_declare(passive=True)
    except amqp.NotFound:
        return False
    try:
        with connection.channel() as channel:
            Queue(name, channel=channel, queue_arguments=QUORUM).queue_declare()
    except amqp.PreconditionFailed:
        return True
    return False
