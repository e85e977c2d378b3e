"""Broker and Redis: reachable, encrypted to another network, and a Redis that takes each message and deletes none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import amqp
from kombu import Connection
from kombu.exceptions import KombuError
from redis import Redis
from redis.exceptions import RedisError

from core.common import tls_failures
from core.common.hosts import is_remote
from worker.config.settings import Settings
from worker.doctor.findings import DoctorFinding, error, not_checked, not_set, ok, warning
from worker.doctor.inputs import DoctorInputs
from worker.wiring import broker_probe
from worker.wiring.broker_probe import TLS_ADVICE, BrokerRefusal, BrokerState

REDIS_SECONDS: Final = 3.0
HIGH_MEMORY_SHARE: Final = 0.9  # of maxmemory
MEMORY_ADVICE: Final = "give it more memory with `redis-cli config set maxmemory 512mb`, and the same in redis.conf"
REFUSAL_ADVICE: Final[Mapping[BrokerRefusal, str]] = {
    "its memory is full": MEMORY_ADVICE,
    "its alarm is on (memory or disk)": "`rabbitmqctl status` names the alarm; free memory or disk of RabbitMQ",
    "it is a replica": "name the primary server in REDIS_URL or CELERY_BROKER_URL",
}
MIN_RABBITMQ_VERSION: Final = (4, 0, 1)


def check(inputs: DoctorInputs) -> list[DoctorFinding]:
    settings = inputs.settings
    if settings.is_embedded:
        return [not_set("broker_not_set", "none: `billing-sync up` does all work", "for more processes set REDIS_URL")]
    state = broker_probe.probe(settings)
    if not state.responds:
        consequence = "changes stay in the database until it does; nothing is lost"
        if state.tls_problem is not None:
            message = f"TLS with {state.address} fails: {state.tls_problem}"
            return [error("broker_tls", message, consequence, TLS_ADVICE)]
        advice = "start it, or correct REDIS_URL or CELERY_BROKER_URL; then `billing-sync status`"
        return [error("broker_unreachable", f"{state.address} does not respond", consequence, advice)]
    found = [*_refusal(state), *_encryption(settings.broker, state.address), *_queues(state), *_version(settings)]
    return found or [ok("broker", f"{state.address} responds")]


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
            info = client.info()
    except (RedisError, OSError) as failed:
        consequence = "each process uses the providers' full rate limits"
        if (why := tls_failures.reason(failed)) is not None:
            return [error("redis_tls", f"TLS with Redis fails: {why}", consequence, TLS_ADVICE)]
        message = f"Redis does not respond ({type(failed).__name__})"
        return [error("redis_unreachable", message, consequence, "start it, or correct REDIS_URL")]
    found = list(_redis_findings(info, is_broker=settings.is_redis_broker))
    return found or [ok("redis", f"Redis {info.get('redis_version', '?')}, noeviction")]


def _refusal(state: BrokerState) -> Iterator[DoctorFinding]:
    if state.refusal is not None:
        message = f"{state.address} refuses each message: {state.refusal}"
        consequence = "changes stay in the database until it accepts them; nothing is lost"
        yield error("broker_refuses", message, consequence, REFUSAL_ADVICE[state.refusal])


def _redis_findings(info: dict[str, Any], *, is_broker: bool) -> Iterator[DoctorFinding]:
    refusal, share = broker_probe.write_refusal(info), broker_probe.memory_share(info)
    if refusal is not None:
        consequence = "each process uses the providers' full rate limits"
        yield error("redis_refuses", f"it refuses each write: {refusal}", consequence, REFUSAL_ADVICE[refusal])
    elif share >= HIGH_MEMORY_SHARE:
        consequence = "when it is full it refuses messages and rate limits, or deletes them"
        yield warning("redis_nearly_full", f"{share:.0%} of its maxmemory is used", consequence, MEMORY_ADVICE)
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        consequence = (
            "if its memory is full it deletes queued messages; the sweep finds their work only later"
            if is_broker
            else "if its memory is full it deletes rate limits, and the providers respond 429"
        )
        advice = "`redis-cli config set maxmemory-policy noeviction`, and the same in redis.conf"
        yield warning("redis_evicts", f"its eviction policy is {policy}", consequence, advice)
    if str(info.get("redis_mode", "standalone")) == "cluster":
        message = "it is a cluster"
        yield error("redis_cluster", message, "Celery's queues need one node", "set REDIS_URL to a single server")


def _encryption(url: str, address: str) -> Iterator[DoctorFinding]:
    parts = urlsplit(url)
    if parts.scheme in {"redis", "amqp", "pyamqp"} and is_remote(parts.hostname):
        secure = {"redis": "rediss", "amqp": "amqps", "pyamqp": "amqps"}[parts.scheme]
        consequence = "its password and the ids of your organizations cross the network unencrypted"
        yield warning("broker_unencrypted", f"{address} is not encrypted", consequence, f"use {secure}:// in its URL")


def _queues(state: BrokerState) -> Iterator[DoctorFinding]:
    for problem in state.queue_problems:
        consequence = "no worker starts, and work stays in the database"
        yield error("queue_type", f"no worker can use the broker: {problem.text}", consequence, problem.advice)


def _version(settings: Settings) -> Iterator[DoctorFinding]:
    """RabbitMQ only."""
    if not settings.broker.startswith(("amqp", "pyamqp")):
        return
    try:
        with broker_probe.open_connection(settings) as connection:
            version = _version_of(connection)
    except (KombuError, OSError, amqp.AMQPError) as failed:
        yield not_checked("queues_unread", f"the version of RabbitMQ cannot be read ({type(failed).__name__})")
        return
    if version and version < MIN_RABBITMQ_VERSION:
        shown = ".".join(map(str, version))
        consequence = "countdowns in its quorum queues may be lost"
        yield error("rabbitmq_old", f"RabbitMQ is version {shown}", consequence, "upgrade it to 4.0.1 or newer")


def _version_of(connection: Connection) -> tuple[int, ...]:
    """As the server says when a client connects; empty if it does not."""
    properties: object = getattr(connection.connection, "server_properties", None)
    version = properties.get("version", "") if isinstance(properties, dict) else ""
    numbers = str(version).split(".")
    return tuple(map(int, numbers)) if all(number.isdigit() for number in numbers) else ()
