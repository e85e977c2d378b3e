"""Whether the broker responds, without the Celery app and what belongs to it."""

from __future__ import annotations

from typing import Final

from kombu import Connection
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from worker.config.broker import transport_options

BROKER_PROBE_SECONDS: Final = 2


def probe(url: str) -> tuple[str, bool]:
    """The URL without its password, and whether the broker responds. One attempt of a few seconds."""
    with Connection(url, transport_options=transport_options(url), connect_timeout=4) as connection:
        address = connection.as_uri()
        try:
            connection.ensure_connection(max_retries=1, timeout=BROKER_PROBE_SECONDS)
        except (KombuError, OSError, RedisError):
            return address, False
        return address, True
