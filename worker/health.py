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

ANSWER_SECONDS: Final = 4.0
# A batch and a broker that blinks take seconds; an event that waits longer is not being relayed.
LONGEST_WAIT: Final = timedelta(seconds=60)
# What the processes call themselves at the broker: as the command line names them, and as Celery names beat.
NODES: Final = {"worker": "worker-*", "beat": "celerybeat"}
Value = TypeVar("Value")


class SickError(Exception):
    """Why the process is not healthy."""


def main(words: list[str]) -> int:
    if len(words) != 1:
        return _say("name one of worker, beat, relay, database or an http:// address")
    try:
        check(words[0])
    except (SickError, SettingsError) as error:
        return _say(str(error))
    except BrokerError:
        return _say("the broker does not answer")
    except OperationalError:
        return _say("the database does not answer")
    except httpx.HTTPError as error:
        return _say(f"{words[0]} does not answer ({type(error).__name__})")
    return 0


def check(what: str) -> None:
    """Raises ``SickError`` or what the broker, the database or HTTP raise."""
    match what:
        case "worker" | "beat":
            _pinged(what)
        case "relay":
            _relayed()
        case "database":
            _queried(select(literal(1)))
        case _:
            _answered(what)


def _pinged(kind: str) -> None:
    host = socket.gethostname()
    # An app of its own: a check runs every few seconds and must not load both billers' SDKs to send one message.
    with Celery(broker=read().broker, set_as_current=False) as app:
        if not app.control.ping(timeout=ANSWER_SECONDS, pattern=f"{NODES[kind]}@{host}", matcher="glob", limit=1):
            message = f"no {kind} of {host} answers through the broker"
            raise SickError(message)


def _relayed() -> None:
    waiting_since = _queried(select(Event.occurred_at).where(Event.published_at.is_(None)).order_by(Event.seq).limit(1))
    if waiting_since is not None and utc_now() - waiting_since > LONGEST_WAIT:
        message = f"a committed event waits since {waiting_since:%H:%M:%S} UTC"
        raise SickError(message)


def _queried(query: Select[Value]) -> Value | None:
    database = Database(read().database, pool_size=1)
    try:
        with database.read() as session:
            return session.scalar(query)
    finally:
        database.close()


def _answered(url: str) -> None:
    answer = httpx.get(url, timeout=ANSWER_SECONDS, trust_env=False)
    if answer.status_code != httpx.codes.OK:
        message = f"{url} answers {answer.status_code}"
        raise SickError(message)


def _say(sentence: str) -> int:
    sys.stderr.write(f"not healthy: {sentence}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
