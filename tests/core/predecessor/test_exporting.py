"""What was imported comes back as the old store wrote it, byte for byte; what changed since is in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.catalog.plans import Catalog
from core.events.event_types import ChangeContext
from core.organizations import commands, memberships
from core.organizations.commands import NewOrganization
from core.predecessor.exporting import ExportCounts, export_files
from core.predecessor.files import UnwritableFileError
from tests.support.importer import Importer
from tests.support.predecessor_files import (
    A_ID,
    PREDECESSOR,
    A,
    B,
    member,
    members_text,
    organization,
    organizations_text,
)

NAMES = ("organizations.json", "org_users.json")


def export(importer: Importer, folder: Path) -> tuple[ExportCounts, list[bytes]]:
    folder.mkdir(exist_ok=True)
    files = [folder / name for name in NAMES]
    return export_files(importer.database, *files), [file.read_bytes() for file in files]


def test_the_healthy_files_come_back_byte_for_byte(importer: Importer, tmp_path: Path) -> None:
    importer.run(PREDECESSOR / "healthy")
    exported, files = export(importer, tmp_path / "out")
    assert files == [(PREDECESSOR / "healthy" / name).read_bytes() for name in NAMES]
    assert exported == ExportCounts(organizations=14, members=15)


def test_300_organizations_with_5_members_come_back_byte_for_byte(importer: Importer, tmp_path: Path) -> None:
    """Out of the order of their ids and dates, at most 500 at once or not."""
    count = 501
    order = [n * 7 % count for n in range(count)]
    statuses = ["active", "suspended", "deleted"]
    records = [organization(n, status=statuses[n % 3], created_at="2025-01-01 00:00:00") for n in order]
    members = {f"org_{n:08d}-aaaa": [member(n, user) for user in (4, 0, 3, 1, 2)][: n % 6] for n in order}
    importer.bring(records, members)
    _, files = export(importer, tmp_path / "out")
    assert files == [organizations_text(records), members_text(members)]


def test_what_was_made_and_changed_here_comes_in_its_place(importer: Importer, tmp_path: Path, plans: Catalog) -> None:
    importer.bring([A, B], {A_ID: [member(1, 0), member(1, 1), member(1, 2)]})
    with importer.change(A_ID) as (change, acme):
        commands.rename(change, acme, "Łódź")
        leaving = memberships.lock(change.session, A_ID, "user_1")
        assert leaving is not None
        memberships.remove(change, leaving)
        change.session.flush()
        memberships.add(change, acme, "user_1", "member")
    with importer.database.write() as session:
        new = commands.create(
            ChangeContext(session, importer.clock()), NewOrganization(name="New", plan_tier="starter"), plans
        )
    _, (text, lists) = export(importer, tmp_path / "out")
    assert [(org["id"], org["name"]) for org in json.loads(text).values()] == [
        (A_ID, "Łódź"),
        (B["id"], B["name"]),
        (new.id, "New"),
    ]
    assert [row["user_id"] for row in json.loads(lists)[A_ID]] == ["user_0", "user_2", "user_1"]
    assert json.loads(lists)[new.id] == []


def test_an_empty_store_is_two_empty_objects(importer: Importer, tmp_path: Path) -> None:
    assert export(importer, tmp_path / "out") == (ExportCounts(), [b"{}", b"{}"])


def test_a_folder_that_is_not_there_is_one_clear_sentence(importer: Importer, tmp_path: Path) -> None:
    with pytest.raises(UnwritableFileError, match=r"cannot be written"):
        export_files(importer.database, tmp_path / "gone" / "o.json", tmp_path / "gone" / "m.json")
