"""Files come back byte for byte, or stay as they were."""

import json
import stat
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

from core.predecessor.files import (
    OldMember,
    OldOrganization,
    UnwritableFileError,
    read_members,
    read_organizations,
    write_members,
    write_organizations,
)
from tests.support.predecessor_files import PREDECESSOR, member, members_text, organization, organizations_text


def copy_of(folder: Path, target: Path) -> None:
    items = read_organizations(folder / "organizations.json")
    write_organizations(target / "organizations.json", (i for i in items if isinstance(i, OldOrganization)))
    lists = json.loads((folder / "org_users.json").read_bytes())
    members = (i for i in read_members(folder / "org_users.json") if isinstance(i, OldMember))
    listed = {org_id: list(group) for org_id, group in groupby(members, lambda member: member.org_id)}
    write_members(target / "org_users.json", ((org_id, listed.get(org_id, [])) for org_id in lists))


def test_healthy_files_come_back_byte_for_byte(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / "organizations.json").write_bytes(organizations_text(organization(n) for n in range(300)))
    (made / "org_users.json").write_bytes(
        members_text({f"org_{n:08d}-aaaa": [member(n, u) for u in range(n % 5)] for n in range(300)})
    )
    (tmp_path / "out").mkdir()
    for folder in (PREDECESSOR / "healthy", made):
        copy_of(folder, tmp_path / "out")
        for name in ("organizations.json", "org_users.json"):
            assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


def test_empty_stores_are_written_as_the_old_store_did(tmp_path: Path) -> None:
    write_organizations(tmp_path / "o.json", [])
    write_members(tmp_path / "m.json", [])
    assert (tmp_path / "o.json").read_bytes() == (tmp_path / "m.json").read_bytes() == json.dumps({}, indent=2).encode()


def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "organizations.json"
    path.write_text("before")
    path.chmod(0o640)

    def broken() -> Iterator[OldOrganization]:
        yield from (
            i for i in read_organizations(PREDECESSOR / "healthy" / path.name) if isinstance(i, OldOrganization)
        )
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_organizations(path, broken())
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    write_organizations(path, [])
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_who_reads_while_it_is_written_sees_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "organizations.json"
    path.write_text("before")
    with path.open() as reader:
        write_organizations(path, [])
        assert (reader.read(), path.read_text()) == ("before", "{}")


def test_a_folder_that_is_not_there_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(UnwritableFileError, match=r"gone/o\.json cannot be written \(No such file or directory\)"):
        write_organizations(tmp_path / "gone" / "o.json", [])
