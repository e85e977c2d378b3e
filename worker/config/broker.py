"""Options of the connection to the broker, by its kind."""

from __future__ import annotations

from typing import Any, Final

from worker.config.settings import SettingsError

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
    """Raises ``SettingsError`` if no transport has the scheme of this URL."""
    # Without "://" the part before the colon may be a password, so it is not shown.
    scheme = broker.split("://", 1)[0] if "://" in broker else "none"
    if scheme in {"redis", "rediss"}:
        return REDIS_TRANSPORT_OPTIONS
    if scheme in {"amqp", "amqps", "pyamqp"}:
        return AMQP_TRANSPORT_OPTIONS
    if scheme == "memory":
        return MEMORY_TRANSPORT_OPTIONS
    message = (
        f"the broker URL (CELERY_BROKER_URL, else REDIS_URL) has the scheme {scheme}; "
        "use redis://, rediss://, amqp:// or amqps://"
    )
    raise SettingsError(message)
