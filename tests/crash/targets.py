"""Targets of a run: a folder, a database and a broker, which can be restored to an earlier state."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from celery import Celery
from psycopg.sql import SQL, Identifier
from redis import Redis
from sqlalchemy import make_url

from core.db.database import Database
from tests.crash.operations import Message

SQLITE_FILES = ("billing-sync.db", "billing-sync.db-wal")


@dataclass(frozen=True, slots=True)
class Process:
    """``words`` are those of the console script. With ``takes_messages``, the process sends the messages itself, since
    its broker cannot be reached from outside."""

    words: tuple[str, ...]
    takes_messages: bool = False


class CrashTarget(ABC):
    """The target of one runner. ``save_state`` and ``restore_state`` need all our processes to be stopped."""

    name: str
    processes: tuple[Process, ...]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @property
    @abstractmethod
    def database_url(self) -> str: ...

    @property
    @abstractmethod
    def environment(self) -> dict[str, str]: ...

    @abstractmethod
    def save_state(self, name: str) -> None: ...

    @abstractmethod
    def restore_state(self, name: str) -> None: ...

    @abstractmethod
    def send(self, messages: tuple[Message, ...]) -> None: ...

    @abstractmethod
    def send_task(self, task: str) -> None:
        """Send the task as beat does, if the target has no beat."""

    def close(self) -> None:
        return


class EmbeddedTarget(CrashTarget):
    """``billing-sync up``: SQLite and everything in one process."""

    name = "embedded"
    processes = (Process(("up",), takes_messages=True),)

    def __init__(self, folder: Path, snapshots: Path) -> None:
        super().__init__(folder)
        self._snapshots = snapshots

    @property
    def database_url(self) -> str:
        return f"sqlite:///{self.folder / SQLITE_FILES[0]}"

    @property
    def environment(self) -> dict[str, str]:
        return {"DATABASE_URL": self.database_url}

    def save_state(self, name: str) -> None:
        target = self._snapshots / name
        target.mkdir(parents=True)
        for file in SQLITE_FILES:
            if (self.folder / file).exists():
                shutil.copy(self.folder / file, target)

    def restore_state(self, name: str) -> None:
        for file in (*SQLITE_FILES, "billing-sync.db-shm"):
            (self.folder / file).unlink(missing_ok=True)
        for saved in (self._snapshots / name).iterdir():
            shutil.copy(saved, self.folder)

    def send(self, messages: tuple[Message, ...]) -> None:
        """Not needed: its process does this itself."""

    def send_task(self, task: str) -> None:
        """Not needed: its process does this itself."""


class DeployedTarget(CrashTarget):
    """Postgres and Redis, with ``worker`` and ``relay`` as separate processes; the runner replaces beat."""

    name = "deployed"
    processes = (Process(("worker", "--concurrency", "1")), Process(("relay",)))

    def __init__(self, folder: Path, server: str, redis: str, number: int) -> None:
        super().__init__(folder)
        self._server = make_url(server).set(drivername="postgresql").render_as_string(hide_password=False)
        self._database = f"crash_runner_{number}"
        self._redis = make_url(redis).set(database=str(number)).render_as_string(hide_password=False)
        self._app = Celery("sender", broker=self._redis, set_as_current=False)

    @property
    def database_url(self) -> str:
        return make_url(self._server).set(database=self._database).render_as_string(hide_password=False)

    @property
    def environment(self) -> dict[str, str]:
        return {"DATABASE_URL": self.database_url, "REDIS_URL": self._redis}

    def save_state(self, name: str) -> None:
        self._copy(self._database, _snapshot_name(name))

    def restore_state(self, name: str) -> None:
        with Redis.from_url(self._redis) as redis:
            redis.flushdb()
        self._copy(_snapshot_name(name), self._database)

    def send(self, messages: tuple[Message, ...]) -> None:
        for message in messages:
            self._app.send_task("events.receive", args=[message], queue="events", ignore_result=True)

    def send_task(self, task: str) -> None:
        self._app.send_task(task, queue="events", ignore_result=True)

    def close(self) -> None:
        self._app.close()

    def _copy(self, source: str, target: str) -> None:
        with psycopg.connect(self._server, autocommit=True) as owner:
            owner.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(target)))
            # A template must have no connections, and that of a killed process may last a moment longer.
            owner.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [source])
            owner.execute(SQL("CREATE DATABASE {} TEMPLATE {}").format(Identifier(target), Identifier(source)))


@contextmanager
def first_database(server: str) -> Iterator[None]:
    """Create the snapshot of the empty database; at the end, drop all our databases on the server."""
    url = make_url(server).set(drivername="postgresql").render_as_string(hide_password=False)
    try:
        with psycopg.connect(url, autocommit=True) as owner:
            owner.execute(SQL("CREATE DATABASE {}").format(Identifier(_snapshot_name("empty"))))
        snapshot = Database(make_url(url).set(database=_snapshot_name("empty")).render_as_string(hide_password=False))
        snapshot.upgrade()
        snapshot.close()
        yield
    finally:
        with psycopg.connect(url, autocommit=True) as owner:
            found = owner.execute("SELECT datname FROM pg_database WHERE datname LIKE 'crash\\_%'").fetchall()
            for (name,) in found:
                owner.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))


def _snapshot_name(name: str) -> str:
    return f"crash_snapshot_{name.replace(' ', '_').replace(':', '')}"
