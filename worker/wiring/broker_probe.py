"""Whether the broker responds, accepts messages and has our queues, without the Celery app and what belongs to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import amqp
from amqp import AMQPError
from kombu import Connection
from kombu.exceptions import KombuError
from redis import Redis
from redis.exceptions import RedisError

from core.common import tls_failures
from worker.config.broker import transport_options
from worker.config.settings import Settings
from worker.wiring import broker_queues, redis_transport
from worker.wiring.broker_queues import QueueProblem

BrokerRefusal = Literal["its memory is full", "it is a replica", "its alarm is on (memory or disk)"]

TLS_ADVICE: Final = (
    "renew the certificate, correct the host in REDIS_URL or CELERY_BROKER_URL, or add ssl_ca_certs=FILE with the "
    "certificate of its authority there"
)
BROKER_PROBE_SECONDS: Final = 2
_NO_QUEUE: Final = "billing-sync.probe"


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerState:
    """``address`` has no password. ``refusal``: why a broker that responds accepts no message.

    ``queue_problems``: why no worker can use the queues of a broker that responds.

    ``tls_problem``: why TLS failed, if that is why it does not respond.
    """

    address: str
    responds: bool
    tls_problem: str | None = None
    refusal: BrokerRefusal | None = None
    queue_problems: tuple[QueueProblem, ...] = ()


def probe(settings: Settings) -> BrokerState:
    """One attempt of a few seconds."""
    blocked: list[str] = []
    is_rabbitmq = _is_rabbitmq(settings.broker)
    with open_connection(settings, **({"on_blocked": blocked.append} if is_rabbitmq else {})) as connection:
        address = connection.as_uri()
        try:
            connection.ensure_connection(max_retries=1, timeout=BROKER_PROBE_SECONDS)
            if settings.redis_broker is not None:
                return _probe_redis(settings.redis_broker, address)
            return _probe_rabbitmq(connection, address, blocked) if is_rabbitmq else _responds(address)
        except (KombuError, OSError, RedisError, AMQPError) as error:
            return BrokerState(address=address, responds=False, tls_problem=tls_failures.reason(error))


def open_connection(settings: Settings, **options: object) -> Connection:
    """To the broker, with the TLS of its address; it connects when it is used. ``options``: of the transport."""
    # kombu keeps the transport of the first connection, and a probe comes before the worker's own.
    redis_transport.register()
    return Connection(
        settings.broker,
        ssl=settings.broker_tls or False,
        transport_options={**transport_options(settings.broker), **options},
        connect_timeout=4,
    )


def _responds(address: str) -> BrokerState:
    """A broker in memory has nothing to ask for."""
    return BrokerState(address=address, responds=True)


def _probe_rabbitmq(connection: Connection, address: str, blocked: list[str]) -> BrokerState:
    """``blocked`` gets an entry when RabbitMQ says that it reads nothing more from this connection.

    It does so after the first message, which it still confirms. Ours have no queue, so it throws them away.
    """
    problems = tuple(broker_queues.problems_in_rabbitmq(connection))
    channel: Any = connection.channel()  # the published types leave out how to publish
    refusal: BrokerRefusal | None = None
    try:
        for _ in range(2):
            channel.basic_publish(
                amqp.Message(b""), exchange="", routing_key=_NO_QUEUE, confirm_timeout=BROKER_PROBE_SECONDS
            )
    except amqp.AccessRefused:
        pass  # the user may publish to our exchange only, so an alarm is not seen
    except TimeoutError:
        if not blocked:
            raise
        refusal = "its alarm is on (memory or disk)"
        connection.collect()  # it would wait for the answer to its goodbye
    return BrokerState(address=address, responds=True, refusal=refusal, queue_problems=problems)


def _is_rabbitmq(url: str) -> bool:
    return url.startswith(("amqp", "pyamqp"))


def _probe_redis(url: str, address: str) -> BrokerState:
    with Redis.from_url(
        url,
        socket_timeout=BROKER_PROBE_SECONDS,
        socket_connect_timeout=BROKER_PROBE_SECONDS,
        decode_responses=True,
    ) as client:
        refusal, problems = write_refusal(client.info()), tuple(broker_queues.problems_in_redis(client))
    return BrokerState(address=address, responds=True, refusal=refusal, queue_problems=problems)


def write_refusal(info: Mapping[str, Any]) -> BrokerRefusal | None:
    """Why this Redis refuses each write, by its ``INFO``; ``None``: it accepts them."""
    if memory_share(info) >= 1 and info.get("maxmemory_policy") == "noeviction":
        return "its memory is full"
    if info.get("role") == "slave":
        return "it is a replica"
    return None


def memory_share(info: Mapping[str, Any]) -> float:
    """How much of ``maxmemory`` is used, as Redis itself counts it; 0 without a limit."""
    limit = int(info.get("maxmemory", 0))
    used = int(info.get("used_memory", 0)) - int(info.get("mem_not_counted_for_evict", 0))
    return used / limit if limit else 0.0
