"""Whether the broker responds, accepts messages and has our queues, without the Celery app and what belongs to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from amqp import AMQPError
from kombu import Connection
from kombu.exceptions import KombuError
from redis import Redis
from redis.exceptions import RedisError

from worker.config.broker import transport_options
from worker.wiring import broker_queues
from worker.wiring.broker_queues import QueueProblem

RedisRefusal = Literal["its memory is full", "it is a replica"]

BROKER_PROBE_SECONDS: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerState:
    """``address`` has no password. ``refusal``: why a Redis that responds accepts no message.

    ``queue_problems``: why no worker can use the queues of a broker that responds.
    """

    address: str
    responds: bool
    refusal: RedisRefusal | None = None
    queue_problems: tuple[QueueProblem, ...] = ()


def probe(url: str) -> BrokerState:
    """One attempt of a few seconds. Why RabbitMQ accepts no message is not read."""
    with Connection(url, transport_options=transport_options(url), connect_timeout=4) as connection:
        address = connection.as_uri()
        try:
            connection.ensure_connection(max_retries=1, timeout=BROKER_PROBE_SECONDS)
            if url.startswith(("redis://", "rediss://")):
                return _probe_redis(url, address)
            problems = tuple(broker_queues.problems_in_rabbitmq(connection)) if _is_rabbitmq(url) else ()
        except (KombuError, OSError, RedisError, AMQPError):
            return BrokerState(address=address, responds=False)
        return BrokerState(address=address, responds=True, queue_problems=problems)


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


def write_refusal(info: Mapping[str, Any]) -> RedisRefusal | None:
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
