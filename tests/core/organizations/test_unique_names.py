"""Whether two organizations may have one name is a setting. The database follows it, whatever runs at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Barrier
from typing import Literal

import pytest
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from core.access import users
from core.access.users import UserProfile
from core.catalog.plans import Catalog
from core.db.database import Database
from core.db.models.organizations import Organization
from core.events.event_types import ChangeContext
from core.organizations import commands
from core.organizations.commands import NameTakenError, NewOrganization
from tests.support.waiting import PATIENCE_SECONDS

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
PROCESSES = 4
Setting = Literal["on", "off"]
Connect = Callable[[Setting], Database]


@pytest.fixture
def connect(database: Database) -> Iterator[Connect]:
    """Connects as another process does, with the setting on or off."""
    url = database.url.render_as_string(hide_password=False)
    opened: list[Database] = []

    def connected(setting: Setting) -> Database:
        opened.append(Database(url, unique_names=setting == "on"))
        return opened[-1]

    yield connected
    for each in opened:
        each.close()


def create(database: Database, plans: Catalog, name: str) -> str:
    with database.write() as session:
        return commands.create(ChangeContext(session, NOON), NewOrganization(name=name, plan_tier="starter"), plans).id


def change(database: Database, org_id: str, work: Callable[[ChangeContext, Organization], object]) -> None:
    with database.write() as session:
        organization = commands.lock(session, org_id)
        assert organization is not None
        work(ChangeContext(session, NOON), organization)


def rename(database: Database, org_id: str, name: str) -> None:
    change(database, org_id, lambda context, it: commands.rename(context, it, name))


def set_status(database: Database, org_id: str, status: str) -> None:
    change(database, org_id, lambda context, it: commands.change_status(context, it, status))


def stored(database: Database) -> list[tuple[str, str, bool]]:
    with database.read() as session:
        rows = session.execute(
            select(Organization.name, Organization.status, Organization.may_share_name).order_by(
                Organization.name, Organization.may_share_name
            )
        )
        return [(row[0], row[1], row[2]) for row in rows]


def insert_acme(database: Database, *, may_share_name: bool) -> None:
    """Without our check, as an import inserts its rows."""
    row = {"id": f"org_{may_share_name}", "name": "acme", "name_key": "acme", "may_share_name": may_share_name}
    times = {"created_at": NOON, "updated_at": NOON}
    with database.write() as session:
        session.execute(
            insert(Organization), [row | times | {"plan_tier": "starter", "status": "active", "version": 1}]
        )


def test_where_it_is_off_no_change_refuses_a_name_and_neither_does_the_database(
    connect: Connect, plans: Catalog
) -> None:
    first = create(connect("on"), plans, "Acme")
    off = connect("off")
    create(off, plans, "ACME")
    other = create(off, plans, "Beta")
    rename(off, other, "Acme ")
    set_status(off, first, "deleted")
    create(off, plans, "acme")
    set_status(off, first, "active")
    assert stored(off) == [
        ("ACME", "active", True),
        ("Acme", "active", True),
        ("Acme", "active", True),
        ("acme", "active", True),
    ]


def test_a_row_that_does_not_share_its_name_is_alone_in_the_database_too(connect: Connect, plans: Catalog) -> None:
    create(connect("on"), plans, "Acme")
    with pytest.raises(IntegrityError):
        insert_acme(connect("off"), may_share_name=False)
    insert_acme(connect("off"), may_share_name=True)
    assert len(stored(connect("on"))) == 2


def test_turned_on_again_it_refuses_new_ones_and_leaves_those_that_are_there(connect: Connect, plans: Catalog) -> None:
    off, on = connect("off"), connect("on")
    first, second = create(off, plans, "Acme"), create(off, plans, "Acme")
    beta = create(off, plans, "Beta")
    with pytest.raises(NameTakenError):
        create(on, plans, "acme")
    with pytest.raises(NameTakenError):
        rename(on, beta, "ACME")
    rename(on, first, "ACME")  # its own name
    set_status(on, second, "deleted")
    with pytest.raises(NameTakenError):
        set_status(on, second, "active")
    rename(on, first, "Gamma")
    set_status(on, second, "active")
    with pytest.raises(NameTakenError):
        create(on, plans, "Acme")
    assert stored(on) == [("Acme", "active", False), ("Beta", "active", True), ("Gamma", "active", False)]


@pytest.mark.parametrize(("setting", "created"), [("on", 1), ("off", PROCESSES)])
def test_of_several_processes_that_create_one_name_at_once_one_does_or_all(
    connect: Connect, plans: Catalog, setting: Setting, created: int
) -> None:
    at_once = Barrier(PROCESSES)

    def process(database: Database) -> bool:
        at_once.wait(timeout=PATIENCE_SECONDS)
        try:
            create(database, plans, "Acme")
        except NameTakenError:
            return False
        return True

    databases = [connect(setting) for _ in range(PROCESSES)]
    with ThreadPoolExecutor(PROCESSES) as pool:
        assert sum(pool.map(process, databases)) == created
    assert len(stored(databases[0])) == created


@pytest.mark.parametrize(("setting", "same_names"), [("on", 1), ("off", 2)])
def test_a_second_alice_gets_the_plain_name_only_where_it_is_off(
    connect: Connect, plans: Catalog, setting: Setting, same_names: int
) -> None:
    database = connect(setting)
    for user_id in ("alice", "alice-2"):
        with database.write() as session:
            users.sign_in(ChangeContext(session, NOON), UserProfile(user_id=user_id, name="Alice"), plans)
    assert len(stored(database)) == 2
    assert [name for name, *_ in stored(database)].count("Alice's Organization") == same_names
