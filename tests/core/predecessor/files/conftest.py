from pathlib import Path

import pytest

from core.predecessor.files import FileFinding, OldMember, OldOrganization, read_members, read_organizations
from tests.support.predecessor_files import ReadMembers, ReadOrganizations


@pytest.fixture
def organizations(tmp_path: Path) -> ReadOrganizations:
    def read(content: bytes) -> list[OldOrganization | FileFinding]:
        path = tmp_path / "organizations.json"
        path.write_bytes(content)
        return list(read_organizations(path))

    return read


@pytest.fixture
def members(tmp_path: Path) -> ReadMembers:
    def read(content: bytes) -> list[OldMember | FileFinding]:
        path = tmp_path / "org_users.json"
        path.write_bytes(content)
        return list(read_members(path))

    return read
