"""Health check of a process: ``python -m worker.health worker|beat|relay|database|URL``.

``worker`` and ``beat`` must respond to a ping through the broker under this host's name, so a process that runs without
receiving messages is unhealthy. For ``relay`` no committed event may be unpublished for longer than a minute.
``database`` must respond to a query, and a URL with 200. Exit code 0 means healthy, 1 unhealthy with a reason.
"""

from __future__ import annotations

import socket
import sys
from datetime import timedelta
from typing import Final, TypeVar

import httpx
from celery import Celery
from kombu.exceptions import OperationalError as BrokerError
from sqlalchemy import Select, literal, select
from sqlalchemy.exc import OperationalError

from core.common.clock import utc_now
from core.db.models.events import Event
from worker.config.settings import SettingsError, read
from worker.wiring.database import connect

HEALTH_CHECK_SECONDS: Final = 4.0
# A batch or a short outage of the broker takes seconds. An event that is older is not being relayed.
MAX_RELAY_LAG: Final = timedelta(seconds=60)
# The processes' node names at the broker: the command line sets the worker's, Celery sets beat's.
CELERY_NODE_NAMES: Final = {"worker": "worker-*", "beat": "celerybeat"}
ValueT = TypeVar("ValueT")


class UnhealthyError(Exception):
    """The process is not healthy; the message has the reason."""


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        return _report_unhealthy("give one of worker, beat, relay, database or an http:// URL")
    try:
        check(arguments[0])
    except (UnhealthyError, SettingsError) as error:
        return _report_unhealthy(str(error))
    except BrokerError:
        return _report_unhealthy("the broker does not respond")
    except OperationalError:
        return _report_unhealthy("the database does not respond")
    except httpx.HTTPError as error:
        return _report_unhealthy(f"{arguments[0]} does not respond ({type(error).__name__})")
    return 0


def check(target: str) -> None:
    """Raises ``UnhealthyError``, or the error of the broker, the database or httpx."""
    match target:
        case "worker" | "beat":
            _check_ping(target)
        case "relay":
            _check_relay()
        case "database":
            _query_database(select(literal(1)))
        case _:
            _check_url(target)


def _check_ping(process: str) -> None:
    host = socket.gethostname()
    # A separate app: a check runs every few seconds and must not load both providers' SDKs to send one message.
    with Celery(broker=read().broker, set_as_current=False) as app:
        if not app.control.ping(
            timeout=HEALTH_CHECK_SECONDS, pattern=f"{CELERY_NODE_NAMES[process]}@{host}", matcher="glob", limit=1
        ):
            message = f"no {process} of {host} responds through the broker"
            raise UnhealthyError(message)


def _check_relay() -> None:
    waiting_since = _query_database(
        select(Event.occurred_at).where(Event.published_at.is_(None)).order_by(Event.seq).limit(1)
    )
    if waiting_since is not None and utc_now() - waiting_since > MAX_RELAY_LAG:
        message = f"a committed event has been unpublished since {waiting_since:%H:%M:%S} UTC"
        raise UnhealthyError(message)


def _query_database(query: Select[ValueT]) -> ValueT | None:
    database = connect(read(), pool_size=1)
    try:
        with database.read() as session:
            return session.scalar(query)
    finally:
        database.close()


def _check_url(url: str) -> None:
    response = httpx.get(url, timeout=HEALTH_CHECK_SECONDS, trust_env=False)
    if response.status_code != httpx.codes.OK:
        message = f"{url} returns {response.status_code}"
        raise UnhealthyError(message)


def _report_unhealthy(problem: str) -> int:
    sys.stderr.write(f"not healthy: {problem}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
