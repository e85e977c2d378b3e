"""An import may be killed anywhere and repeated at will: each record comes once, nothing here is overwritten."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from core.catalog.plans import Catalog
from core.common.clock import Clock
from core.db.database import Database
from core.db.models.inbox import ServiceEvent
from core.events.event_types import ChangeContext
from core.inbox import service_events
from core.organizations import commands, memberships, plan_changes
from core.predecessor.files import FileFinding, OldOrganization, UnreadableFileError, read_organizations
from core.predecessor.import_organizations import OrganizationImport
from core.predecessor.importing import IMPORT_CAUSE, import_files
from core.predecessor.report import ImportReport
from tests.support.clocks import SetClock
from tests.support.importer import Importer, said, without_chance
from tests.support.predecessor_files import (
    A_ID,
    B_ID,
    PREDECESSOR,
    A,
    B,
    member,
    members_text,
    organization,
    organizations_text,
)

ROOT = Path(__file__).parent.parent.parent.parent


def test_everything_of_the_healthy_files_is_here_and_nothing_was_to_be_said(importer: Importer) -> None:
    report = importer.run(PREDECESSOR / "healthy")
    assert (report.organizations.new, report.members.new, said(report), report.ok) == (14, 15, [], True)
    acme = importer.organization("org_cf3906a1-33af-4f6a-bfa5-12e26ea0c8d2")
    assert (acme.name, acme.plan_tier, acme.status) == ("Acme Corporation", "professional", "active")
    assert acme.created_at.isoformat() == "2026-11-23T07:38:39.616401+00:00"
    bob = importer.members()[acme.id, "user_bob"]
    assert (bob.role, bob.joined_at.isoformat()) == ("billing_admin", "2026-11-23T07:38:39.619204+00:00")


def test_links_are_due_at_once_with_the_old_ids_unverified(importer: Importer, clock: Clock) -> None:
    importer.bring([organization(0, lago_customer_id="b1c2"), B])
    stripe, lago = (importer.link("org_00000000-aaaa", provider) for provider in ("stripe", "lago"))
    assert (stripe.customer_id, lago.customer_id) == ("cus_0", "b1c2")
    for link in (stripe, lago, importer.link(B_ID, "stripe"), importer.link(B_ID, "lago")):
        assert (link.state, link.desired_version, link.applied_version) == ("active", 1, 0)
        assert link.customer_state == ("absent" if link.customer_id is None else "unconfirmed")
        assert link.next_sweep_at == clock()
    assert importer.link(B_ID, "stripe").customer_id is None


def test_every_part_of_a_long_import_is_due_since_it_began(importer: Importer) -> None:
    began, later = importer.clock(), importer.clock() + timedelta(minutes=5)
    path = importer.folder / "organizations.json"
    path.write_bytes(organizations_text([A, B]))
    first, second = (item for item in read_organizations(path) if isinstance(item, OldOrganization))
    bringing = OrganizationImport(importer.plans, frozenset(), began)
    for old, now in ((first, began), (second, later)):
        with importer.database.write() as session:
            bringing.import_chunk(ChangeContext(session, now, IMPORT_CAUSE), [old])
    assert {importer.link(each, "stripe").next_sweep_at for each in (A_ID, B_ID)} == {began}


def say(importer: Importer, message_id: str, event_type: str, subject: str = A_ID, **data: str) -> str:
    """What another service sends; the verdict."""
    message = {"specversion": "1.0", "id": message_id, "source": "/shop", "type": event_type, "subject": subject}
    return service_events.handle(importer.database, importer.plans, importer.clock, {**message, "data": data}).status


def test_what_was_said_of_an_organization_and_its_members_before_they_came_is_taken(importer: Importer) -> None:
    assert say(importer, "1", "organization.plan_changed", plan_tier="enterprise") == "waiting"
    assert say(importer, "2", "membership.role_changed", user_id="user_1", role="billing_admin") == "waiting"
    assert say(importer, "3", "organization.renamed", subject="org_of-no-file", name="Nobody") == "waiting"
    importer.bring([A, B], {A_ID: [member(1, 0), member(1, 1)]})
    assert importer.organization(A_ID).plan_tier == "enterprise"
    assert importer.members()[A_ID, "user_1"].role == "billing_admin"
    assert [row["status"] for row in importer.tables()["service_events"]] == ["applied", "applied", "waiting"]


def test_what_is_said_while_its_organization_is_being_imported_is_not_left_waiting(importer: Importer) -> None:
    with during_the_import(importer) as start:
        plan = start(lambda: say(importer, "1", "organization.plan_changed", plan_tier="enterprise"))
    assert plan.result(20) == "applied"
    assert importer.organization(A_ID).plan_tier == "enterprise"


def test_a_new_organization_with_the_name_of_one_being_imported_is_refused_and_kept(importer: Importer) -> None:
    name = str(A["name"])
    with during_the_import(importer) as start:
        new = start(lambda: say(importer, "1", "organization.created", subject="org_new-one", name=name))
    assert new.result(20) == "rejected"
    with importer.database.read() as session:
        kept = session.get_one(ServiceEvent, ("/shop", "1"))
    assert kept.reason == "data.name: another organization already has this name"


@contextmanager
def during_the_import(importer: Importer) -> Iterator[Callable[[Callable[[], str]], Future[str]]]:
    """What is started inside begins when A has been put in, and has half a second before that is committed."""
    path = importer.folder / "organizations.json"
    path.write_bytes(organizations_text([A]))
    olds = [item for item in read_organizations(path) if isinstance(item, OldOrganization)]
    bringing = OrganizationImport(importer.plans, frozenset(), importer.clock())
    with ThreadPoolExecutor(1) as pool, importer.database.write() as session:
        bringing.import_chunk(ChangeContext(session, importer.clock(), IMPORT_CAUSE), olds)
        yield pool.submit
        time.sleep(0.5)


def test_every_record_has_its_event_which_the_relay_has_nothing_to_do_with(importer: Importer, clock: Clock) -> None:
    importer.bring([A, B], {A_ID: [member(1, 0), member(1, 1)]})
    events = importer.tables()["events"]
    assert [(event["type"], event["org_id"], event["data"]) for event in events] == [
        ("organization.created", A_ID, {"plan_tier": "starter"}),
        ("organization.created", B_ID, {"plan_tier": "starter"}),
        ("membership.added", A_ID, {"user_id": "user_0", "role": "owner"}),
        ("membership.added", A_ID, {"user_id": "user_1", "role": "member"}),
    ]
    assert all(event["source"] == "import" and event["published_at"] == clock() for event in events)
    assert len({event["id"] for event in events}) == 4


def test_a_second_run_changes_nothing_and_says_the_same(importer: Importer, clock: SetClock) -> None:
    for state, counts in {"healthy": (14, 15), "torn": (24, 0), "poisoned": (5, 5)}.items():
        first = importer.run(PREDECESSOR / state)
        before = importer.tables()
        clock.advance(hours=1)
        second = importer.run(PREDECESSOR / state)
        assert importer.tables() == before
        assert (first.organizations.new, first.members.new) == counts
        assert (second.organizations.new, second.organizations.unchanged) == (0, counts[0])
        assert (second.members.new, second.members.unchanged) == (0, counts[1])
        assert said(second) == said(first)
        assert second.ok == first.ok == (state == "healthy")


def test_what_people_changed_here_since_is_kept_and_named(importer: Importer, plans: Catalog) -> None:
    lists = {A_ID: [member(1, user) for user in range(4)]}
    importer.bring([A, B], lists)
    with importer.change(A_ID) as (change, acme):
        commands.rename(change, acme, "Acme Holding")
        plan_changes.change_plan(change, acme, "enterprise", plans)
        commands.change_status(change, acme, "suspended")
        for user, role in (("user_1", "owner"), ("user_2", None)):
            membership = memberships.lock(change.session, A_ID, user)
            assert membership is not None
            if role is None:
                memberships.remove(change, membership)
            else:
                memberships.change_role(change, membership, role)
    before = importer.tables()
    report = importer.bring([A, B], lists)
    assert importer.tables() == before
    assert report.ok
    assert report.conflicts == 3
    assert said(report) == [
        ("repair", "kept the database's version: name, plan_tier, status changed since the import", A_ID),
        ("repair", "kept the database's version: role changed since the import", f"{A_ID} user_1"),
        ("repair", "kept the database's version: removed since the import", f"{A_ID} user_2"),
    ]
    assert (report.organizations.unchanged, report.members.unchanged) == (2, 4)


def test_an_id_that_the_sync_made_meanwhile_is_no_difference(importer: Importer) -> None:
    importer.bring([A])
    with importer.database.write() as session:
        link = importer.link(A_ID, "stripe")
        link.customer_id = "cus_made"
        session.merge(link)
    assert said(importer.bring([A])) == []


def test_thousands_of_changes_here_are_counted_and_only_the_first_are_named(importer: Importer) -> None:
    records = [organization(n) for n in range(300)]
    importer.bring(records)
    heard: list[FileFinding] = []
    changed = organizations_text([record | {"plan_tier": "enterprise"} for record in records])
    path = importer.folder / "organizations.json"
    path.write_bytes(changed)
    report = import_files(
        importer.database,
        importer.plans,
        importer.clock,
        path,
        path.with_name("org_users.json"),
        on_finding=heard.append,
    )
    assert (report.conflicts, report.repaired) == (300, 300)
    assert len(heard) == len(report.repairs) == 100


def test_all_bytes_of_both_files_are_told_as_they_are_read(importer: Importer) -> None:
    importer.bring([A], {A_ID: [member(1, 0)]})
    told: list[int] = []
    files = [importer.folder / name for name in ("organizations.json", "org_users.json")]
    import_files(importer.database, importer.plans, importer.clock, *files, on_bytes=told.append)
    assert sum(told) == sum(file.stat().st_size for file in files)


def test_nothing_is_written_when_one_of_the_files_is_not_what_it_was_given_for(importer: Importer) -> None:
    importer.bring([A], {A_ID: [member(1, 0)]})
    before = importer.tables()
    path = importer.folder / "organizations.json"
    path.write_bytes(organizations_text([B]))
    for members in (path, importer.folder / "gone.json"):
        with pytest.raises(UnreadableFileError):
            import_files(importer.database, importer.plans, importer.clock, path, members)
    assert importer.tables() == before


def test_imports_at_the_same_time_bring_each_record_once(importer: Importer) -> None:
    records = [organization(n) for n in range(600)]
    lists = {str(record["id"]): [member(n, user) for user in range(3)] for n, record in enumerate(records)}
    (importer.folder / "organizations.json").write_bytes(organizations_text(records))
    (importer.folder / "org_users.json").write_bytes(members_text(lists))
    together = threading.Barrier(3)

    def run() -> ImportReport:
        together.wait()
        return importer.run(importer.folder)

    with ThreadPoolExecutor(3) as pool:
        reports = [future.result() for future in [pool.submit(run) for _ in range(3)]]
    assert sum(report.organizations.new for report in reports) == 600
    assert sum(report.members.new for report in reports) == 1_800
    assert all(report.members.new + report.members.unchanged == 1_800 for report in reports)
    assert all(said(report) == [] for report in reports)
    assert len(importer.tables()["events"]) == 2_400


# --- killed in the middle ---

COUNT = 1_200
DYING = """
import os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from sqlalchemy import event
from core.catalog import plans
from core.db.database import Database
from core.predecessor.importing import import_files

url, folder, table, count = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
database = Database(url)
seen = 0

@event.listens_for(database.engine, "after_cursor_execute")
def die(connection, cursor, statement, *_):
    global seen
    seen += statement.startswith(f"INSERT INTO {table} ")
    if seen == count:
        os.kill(os.getpid(), signal.SIGKILL)

import_files(
    database, plans.load(), lambda: datetime(2026, 11, 23, 12, tzinfo=UTC),
    folder / "organizations.json", folder / "org_users.json",
)
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("table", "nth"), [("organizations", 1), ("billing_links", 2), ("memberships", 2), ("events", 4)]
)
def test_killed_anywhere_and_run_again_is_the_same_as_one_run(
    importer: Importer, tmp_path: Path, table: str, nth: int
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    records = [organization(n, stripe_customer_id=f"cus_{n % (COUNT - 5)}") for n in range(COUNT)]
    (folder / "organizations.json").write_bytes(organizations_text(records))
    lists = {str(record["id"]): [member(n, user) for user in range(9)] for n, record in enumerate(records)}
    (folder / "org_users.json").write_bytes(members_text(lists))
    url = importer.database.url.render_as_string(hide_password=False)
    child = subprocess.run(
        [sys.executable, "-c", DYING, url, str(folder), table, str(nth)], cwd=ROOT, check=False, timeout=120
    )
    assert child.returncode == -signal.SIGKILL
    second = importer.run(folder)
    assert second.members.new > 0
    assert second.lost == 5
    whole = Database(f"sqlite:///{tmp_path / 'whole.db'}")
    whole.upgrade()
    Importer(whole, importer.plans, importer.clock, tmp_path).run(folder)
    at_once = Importer(whole, importer.plans, importer.clock, tmp_path).tables()
    whole.close()
    assert without_chance(importer.tables()) == without_chance(at_once)
