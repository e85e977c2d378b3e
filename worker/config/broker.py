"""Options of the connection to the broker, by its kind."""

from __future__ import annotations

from typing import Any, Final

from worker.config.server_urls import AMQP_SCHEMES, REDIS_SCHEMES

# The visibility timeout must exceed the longest countdown and the longest task, or they run again (celery.md 0.2).
REDIS_TRANSPORT_OPTIONS: Final[dict[str, Any]] = {
    "visibility_timeout": 300,
    "unacked_restore_interval": 10,
    "unacked_restore_throttle": 1,
    "socket_timeout": 5,
    "socket_connect_timeout": 3,
    "socket_keepalive": True,
    "health_check_interval": 25,
    "max_connections": 200,
}
AMQP_TRANSPORT_OPTIONS: Final[dict[str, Any]] = {"confirm_publish": True, "read_timeout": 5, "write_timeout": 5}
MEMORY_TRANSPORT_OPTIONS: Final[dict[str, Any]] = {"polling_interval": 0.01}


def transport_options(broker: str) -> dict[str, Any]:
    """``broker``: an address that the settings accepted."""
    scheme = broker.partition("://")[0]
    if scheme in REDIS_SCHEMES:
        return REDIS_TRANSPORT_OPTIONS
    return AMQP_TRANSPORT_OPTIONS if scheme in AMQP_SCHEMES else MEMORY_TRANSPORT_OPTIONS
