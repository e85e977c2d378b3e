"""A real PgBouncer in transaction mode with its default settings, between a test and its database.

``make pgbouncer`` unpacks it from Debian's package. Tests are skipped where there is none.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
import pytest
from sqlalchemy import URL, make_url

from tests.support.deployment import free_port
from tests.support.waiting import PATIENCE_SECONDS, until

ADMIN_DATABASE: Final = "pgbouncer"
SERVER_CONNECTIONS: Final = 4  # fewer than the connections of our processes


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooler:
    """``url``: of the database through PgBouncer. ``direct_url``: of the same database without it."""

    url: str
    direct_url: str

    def enter(self, command: str) -> list[tuple[object, ...]]:
        """A command of PgBouncer's own console."""
        console = make_url(self.url).set(database=ADMIN_DATABASE, query={}).render_as_string(hide_password=False)
        with psycopg.connect(console, autocommit=True, prepare_threshold=None) as connection:
            cursor = connection.execute(command.encode())
            return cursor.fetchall() if cursor.description else []


def program() -> str:
    beside_python = Path(sys.executable).with_name("pgbouncer")
    found = str(beside_python) if beside_python.exists() else shutil.which("pgbouncer")
    if found is None:
        pytest.skip("pgbouncer is not installed (make pgbouncer)")
    return found


@contextmanager
def in_front_of(direct_url: str) -> Iterator[Pooler]:
    """PgBouncer for this database. It runs as the owner of the server's socket, because it refuses to run as root."""
    server, port, command = make_url(direct_url), free_port(), program()
    url = URL.create("postgresql", server.username, host="127.0.0.1", port=port, database=server.database)
    pooler = Pooler(url=url.render_as_string(hide_password=False), direct_url=direct_url)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(Path(sys.prefix) / "lib" / "pgbouncer")}
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as name:
        folder = Path(name)
        file = _settings_file(server, port, folder)
        with (folder / "pgbouncer.log").open("wb") as log:
            process = subprocess.Popen([command, file], env=environment, user=_owner(server), stdout=log, stderr=log)
        try:
            until(lambda: _accepts(pooler), "PgBouncer runs", details=(folder / "pgbouncer.log").read_text)
            yield pooler
        finally:
            process.terminate()
            process.wait(PATIENCE_SECONDS)


def _settings_file(server: URL, port: int, folder: Path) -> Path:
    host = server.query.get("host") or server.host or "127.0.0.1"
    address = f"host={host} port={server.port or 5432} dbname={server.database} user={server.username}"
    password = f" password={server.password}" if server.password else ""
    file = folder / "pgbouncer.ini"
    file.write_text(
        f"[databases]\n{server.database} = {address}{password} pool_size={SERVER_CONNECTIONS}\n"
        f"[pgbouncer]\npool_mode = transaction\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
        f"unix_socket_dir =\nauth_type = any\nadmin_users = {server.username}\n",
        encoding="utf-8",
    )
    file.chmod(0o644)
    folder.chmod(0o755)
    return file


def _owner(server: URL) -> str | None:
    """The user to run as, ``None``: as this process."""
    socket_folder = server.query.get("host")
    if os.geteuid() != 0:
        return None
    if isinstance(socket_folder, str):
        socket = Path(socket_folder) / f".s.PGSQL.{server.port or 5432}"
        return pwd.getpwuid(socket.stat().st_uid).pw_name
    return "nobody"


def _accepts(pooler: Pooler) -> bool:
    try:
        return bool(pooler.enter("SHOW VERSION"))
    except psycopg.OperationalError:
        return False
