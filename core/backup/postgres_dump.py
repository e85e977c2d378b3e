"""Dump of a Postgres database by ``pg_dump``, in its custom format, from one consistent moment.

Only our own tables are in it. ``pg_dump`` must not be older than the server, so one that fits is looked for in PATH and
where Debian installs several. The password is given to it in its environment, which no other user can read.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from psycopg.conninfo import make_conninfo
from sqlalchemy import text

from core.backup.contents import REVISION_TABLE, BackupContents, BackupError, our_tables
from core.db.database import POSTGRES_CONNECT_TIMEOUT_SECONDS, Database

MAX_DUMP_SECONDS: Final = 6 * 3600.0
_MAX_ERROR_BYTES: Final = 64 * 1024
_LOCK_WAIT_MILLISECONDS: Final = 60_000
_VERSIONS_FOLDER: Final = Path("/usr/lib/postgresql")
_VERSION: Final = re.compile(r"\(PostgreSQL\) (\d+)")
_COPY: Final = re.compile(rb"COPY (?:\S+\.)?\"?(\w+)\"? \((.*)\) FROM stdin;\n")
_COPY_END: Final = b"\\.\n"
_NEWEST_OF: Final = {"organizations": "version", REVISION_TABLE: "version_num", "provider_status": "database_id"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpProgram:
    """``folder`` has ``pg_dump`` and ``pg_restore`` of one version. ``major``: that version."""

    folder: Path
    major: int


def find_program(database: Database) -> DumpProgram:
    """The oldest one that can read the server. Raises ``BackupError``, and the errors of the database."""
    server = server_version(database)
    programs = sorted(_programs(), key=lambda program: program.major)
    fitting = next((program for program in programs if program.major >= server), None)
    if fitting is not None:
        return fitting
    found = f"only version {programs[-1].major}" if programs else "none"
    message = (
        f"the server is Postgres {server}, and pg_dump of that or a later version is needed, of which there is {found}"
        f": install Debian's postgresql-client-{server}, or put its folder into PATH"
    )
    raise BackupError(message)


def server_version(database: Database) -> int:
    """The major version."""
    with database.read() as session:
        return int(session.scalar(text("SHOW server_version_num")) or 0) // 10_000


def dump(program: DumpProgram, database: Database, target: Path) -> None:
    """``target``: an empty file. Raises ``BackupError``."""
    connection, password = connection_of(database)
    command = [
        str(program.folder / "pg_dump"),
        "--format=custom",
        "--no-owner",
        "--no-privileges",
        "--no-password",
        f"--lock-wait-timeout={_LOCK_WAIT_MILLISECONDS}",
        *(f"--table={table}" for table in our_tables()),
        f"--file={target}",
        f"--dbname={connection}",
    ]
    environment = {**os.environ, **({"PGPASSWORD": password} if password else {})}
    try:
        done = subprocess.run(  # noqa: S603 - our own words
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=MAX_DUMP_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        message = f"pg_dump did not end well ({type(error).__name__}): no backup was taken"
        raise BackupError(message) from error
    if done.returncode:
        message = f"pg_dump failed: {_first_line(done.stderr, password)}"
        raise BackupError(message)


def read(program: DumpProgram, file: Path) -> BackupContents:
    """The whole of it is read as a restore would read it. Raises ``BackupError``."""
    command = [str(program.folder / "pg_restore"), "--data-only", "--file=-", str(file)]
    reader = _RowReader()
    with (
        tempfile.TemporaryFile() as errors_file,
        subprocess.Popen(  # noqa: S603 - our own words
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors_file
        ) as process,
    ):
        if process.stdout is not None:
            reader.read(process.stdout)
        process.wait()
        errors_file.seek(0)
        errors = errors_file.read(_MAX_ERROR_BYTES)
    missing = sorted(set(our_tables()) - set(reader.rows))
    if process.returncode or missing:
        reason = _first_line(errors) if process.returncode else f"it lacks the table {missing[0]}"
        message = f"{file.name} is no complete dump ({reason}): take another backup"
        raise BackupError(message)
    return BackupContents(
        schema_revision=reader.newest.get(REVISION_TABLE, ""),
        database_id=reader.newest.get("provider_status", ""),
        newest_version=int(reader.newest.get("organizations", "0")),
        rows=reader.rows,
    )


@dataclass(slots=True)
class _RowReader:
    """Counts the rows of a dump's text: a row is a line, because a line's end within a value is escaped."""

    rows: dict[str, int] = field(default_factory=dict)
    newest: dict[str, str] = field(default_factory=dict)

    def read(self, lines: IO[bytes]) -> None:
        for line in lines:
            begun = _COPY.fullmatch(line)
            if begun is not None:
                self._read_table(begun[1].decode(), begun[2].decode().split(", "), lines)

    def _read_table(self, table: str, columns: list[str], lines: Iterator[bytes]) -> None:
        self.rows[table], column = 0, _NEWEST_OF.get(table)
        position = columns.index(column) if column is not None else None
        for line in itertools.takewhile(lambda each: each != _COPY_END, lines):
            self.rows[table] += 1
            if position is not None:
                value = line[:-1].split(b"\t")[position].decode()
                self.newest[table] = max(self.newest.get(table, ""), value, key=_by_number)


def _by_number(value: str) -> tuple[int, str]:
    return (int(value) if value.isdigit() else 0, value)


def _programs() -> Iterator[DumpProgram]:
    in_path = shutil.which("pg_dump")
    folders = [Path(in_path).parent] if in_path else []
    folders += sorted(_VERSIONS_FOLDER.glob("*/bin"))
    for folder in folders:
        if not ((folder / "pg_dump").is_file() and (folder / "pg_restore").is_file()):
            continue
        try:
            said = subprocess.run(  # noqa: S603 - our own words
                [str(folder / "pg_dump"), "--version"], capture_output=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        version = _VERSION.search(said.stdout.decode(errors="replace"))
        if version is not None:
            yield DumpProgram(folder=folder, major=int(version[1]))


def connection_of(database: Database) -> tuple[str, str]:
    """As libpq reads it, without the password; and the password."""
    _, given = database.engine.dialect.create_connect_args(database.direct_url)
    if "sslpassword" in given:
        message = (
            "the address of the database has sslpassword, and pg_dump would show it to every user of this machine: use "
            "a key without a password in DATABASE_DIRECT_URL"
        )
        raise BackupError(message)
    plain = {name: str(value) for name, value in given.items() if name not in {"password", "context"}}
    plain["connect_timeout"] = str(POSTGRES_CONNECT_TIMEOUT_SECONDS)
    return make_conninfo("", **plain), str(given.get("password") or "")


def _first_line(errors: bytes, password: str = "") -> str:
    line = next((line for line in errors.decode(errors="replace").splitlines() if line.strip()), "no reason given")
    return line.replace(password, "***") if password else line
