"""``python -m worker.health worker|beat|relay|database|URL``: does that process do its work? For health checks.

``worker`` and ``beat`` must answer a ping through the broker under this host's name, so a process that lives and hears
nothing is not healthy; behind ``relay`` no committed event may wait; ``database`` must answer a query, a URL 200. Exit
code 0, or 1 and why.
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
from core.db.database import Database
from core.db.models.events import Event
from worker.config.settings import SettingsError, read

HEALTH_CHECK_SECONDS: Final = 4.0
# A batch and a broker that blinks take seconds; an event that waits longer is not being relayed.
MAX_RELAY_LAG: Final = timedelta(seconds=60)
# What the processes call themselves at the broker: as the command line names them, and as Celery names beat.
CELERY_NODE_NAMES: Final = {"worker": "worker-*", "beat": "celerybeat"}
ValueT = TypeVar("ValueT")


class UnhealthyError(Exception):
    """Why the process is not healthy."""


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        return _report_unhealthy("name one of worker, beat, relay, database or an http:// address")
    try:
        check(arguments[0])
    except (UnhealthyError, SettingsError) as error:
        return _report_unhealthy(str(error))
    except BrokerError:
        return _report_unhealthy("the broker does not answer")
    except OperationalError:
        return _report_unhealthy("the database does not answer")
    except httpx.HTTPError as error:
        return _report_unhealthy(f"{arguments[0]} does not answer ({type(error).__name__})")
    return 0


def check(target: str) -> None:
    """Raises ``UnhealthyError`` or what the broker, the database or HTTP raise."""
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
    # An app of its own: a check runs every few seconds and must not load both billers' SDKs to send one message.
    with Celery(broker=read().broker, set_as_current=False) as app:
        if not app.control.ping(
            timeout=HEALTH_CHECK_SECONDS, pattern=f"{CELERY_NODE_NAMES[process]}@{host}", matcher="glob", limit=1
        ):
            message = f"no {process} of {host} answers through the broker"
            raise UnhealthyError(message)


def _check_relay() -> None:
    waiting_since = _query_database(
        select(Event.occurred_at).where(Event.published_at.is_(None)).order_by(Event.seq).limit(1)
    )
    if waiting_since is not None and utc_now() - waiting_since > MAX_RELAY_LAG:
        message = f"a committed event waits since {waiting_since:%H:%M:%S} UTC"
        raise UnhealthyError(message)


def _query_database(query: Select[ValueT]) -> ValueT | None:
    database = Database(read().database, pool_size=1)
    try:
        with database.read() as session:
            return session.scalar(query)
    finally:
        database.close()


def _check_url(url: str) -> None:
    response = httpx.get(url, timeout=HEALTH_CHECK_SECONDS, trust_env=False)
    if response.status_code != httpx.codes.OK:
        message = f"{url} answers {response.status_code}"
        raise UnhealthyError(message)


def _report_unhealthy(problem: str) -> int:
    sys.stderr.write(f"not healthy: {problem}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
