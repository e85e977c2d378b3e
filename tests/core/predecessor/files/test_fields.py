"""A record is taken as it is meant or not at all; whatever was read differently is said."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from core.predecessor.files import OldOrganization, UnreadableFileError, read_members, read_organizations
from tests.support.predecessor_files import (
    A_ID,
    B_ID,
    PREDECESSOR,
    A,
    B,
    ReadOrganizations,
    findings,
    ids,
    organization,
    organizations_text,
)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": ...}, "the field 'id' is missing"),
        ({"name": ...}, "the field 'name' is missing"),
        ({"plan_tier": 3}, "the field 'plan_tier' is a number, not text"),
        ({"status": None}, "the field 'status' is null, not text"),
        ({"lago_customer_id": ["x"]}, "the field 'lago_customer_id' is a list, not text"),
        ({"stripe_customer_id": False}, "the field 'stripe_customer_id' is a boolean, not text"),
        ({"name": {"de": "x"}}, "the field 'name' is an object, not text"),
        ({"plan_tier": "a\0b"}, "the field 'plan_tier' contains a character that cannot be stored"),
        ({"status": "\ud800"}, "the field 'status' contains a character that cannot be stored"),
        ({"id": "org_a.b"}, "the id 'org_a.b' must be 'org_' followed by letters, digits, '-' or '_' only"),
        ({"id": "org_a\n"}, "the id 'org_a\\n' must be 'org_' followed by letters, digits, '-' or '_' only"),
        ({"id": "acme"}, "the id 'acme' must be 'org_' followed by letters, digits, '-' or '_' only"),
    ],
)
def test_a_record_without_a_field_that_it_needs_is_lost_with_the_field_named(
    organizations: ReadOrganizations, changes: dict[str, object], reason: str
) -> None:
    text = json.dumps({A_ID: organization(1, **changes), B_ID: B}, indent=2)
    items = organizations(text.encode())
    assert ids(items) == [B_ID]
    [(kind, found, line, subject)] = findings(items)
    assert (kind, found, line) == ("loss", f"unusable record: {reason}", 2)
    assert subject == changes.get("id", A_ID) or (changes.get("id") is ... and subject == A_ID)


def test_a_field_that_stands_twice_is_never_chosen_from(organizations: ReadOrganizations) -> None:
    text = organizations_text([A, B]).replace(b'"plan_tier"', b'"name": "x", "plan_tier"', 1)
    items = organizations(text)
    assert ids(items) == [B_ID]
    assert findings(items)[0][1].startswith("unusable record: the field 'name' occurs twice")


@pytest.mark.parametrize(
    ("written", "moment"),
    [
        ("2026-11-23 07:38:39.616401", datetime(2026, 11, 23, 7, 38, 39, 616401, tzinfo=UTC)),
        ("2026-11-23 07:38:39", datetime(2026, 11, 23, 7, 38, 39, tzinfo=UTC)),
        ("2026-11-23T07:38:39Z", datetime(2026, 11, 23, 7, 38, 39, tzinfo=UTC)),
        ("2026-11-23T09:38:39.5+02:00", datetime(2026, 11, 23, 7, 38, 39, 500000, tzinfo=UTC)),
    ],
)
def test_dates_are_read_in_all_forms_and_are_utc(
    organizations: ReadOrganizations, written: str, moment: datetime
) -> None:
    [item] = organizations(organizations_text([organization(1, created_at=written)]))
    assert isinstance(item, OldOrganization)
    assert item.created_at == moment
    assert item.created_at.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (None, "there is no created_at"),
        (..., "there is no created_at"),
        (1732347519, "created_at is a number, not a date: ignored"),
        ("2026-13-23 07:38:39", "created_at is not a readable date: ignored"),
        ("0001-01-01T00:00:00+14:00", "created_at is not a readable date: ignored"),
    ],
)
def test_a_date_that_cannot_be_read_is_none_and_never_invented(
    organizations: ReadOrganizations, written: object, reason: str
) -> None:
    items = organizations(organizations_text([organization(1, created_at=written)]))
    [record] = [item for item in items if isinstance(item, OldOrganization)]
    assert record.created_at is None
    assert findings(items) == [("repair", reason, 2, A_ID)]


@pytest.mark.parametrize(
    ("name", "read", "reason"),
    [
        ("  ", "  ", "the name is empty"),
        ("x" * 201, "x" * 201, "the name is 201 characters long, more than 200"),
        ("a\0b\ud800", "ab\ufffd", "characters that cannot be stored were removed from the name"),
    ],
)
def test_a_name_that_breaks_the_rules_is_kept_and_named(
    organizations: ReadOrganizations, name: str, read: str, reason: str
) -> None:
    items = organizations(organizations_text([organization(1, name=name)]))
    assert [item.name for item in items if isinstance(item, OldOrganization)] == [read]
    assert findings(items) == [("repair", reason, 2, A_ID)]


def test_unknown_fields_are_named_once_each_with_their_number(organizations: ReadOrganizations) -> None:
    records = [organization(n, seats=n, tags=["a", 1], settings={"x": None}) for n in range(3)]
    records.append(organization(3, logo="l"))
    items = organizations(organizations_text(records))
    assert len(ids(items)) == 4
    assert sorted(findings(items)) == [
        ("repair", "the unknown field 'logo' was ignored, once", 53, None),
        ("repair", "the unknown field 'seats' was ignored, 3 times", 2, None),
        ("repair", "the unknown field 'settings' was ignored, 3 times", 2, None),
        ("repair", "the unknown field 'tags' was ignored, 3 times", 2, None),
    ]


# --- errors a person can make ---


def test_a_missing_file_a_folder_and_the_wrong_order_are_one_clear_sentence(tmp_path: Path) -> None:
    healthy = PREDECESSOR / "healthy"
    with pytest.raises(UnreadableFileError, match=r"gone\.json does not exist: check the path\."):
        read_organizations(tmp_path / "gone.json")
    with pytest.raises(UnreadableFileError, match="is not a file: pass the path of the JSON file itself"):
        read_members(tmp_path)
    with pytest.raises(
        UnreadableFileError, match=r"contains members, not organizations: pass organizations\.json first"
    ):
        read_organizations(healthy / "org_users.json")
    with pytest.raises(
        UnreadableFileError, match=r"contains organizations, not members: pass organizations\.json first"
    ):
        read_members(healthy / "organizations.json")
    (tmp_path / "empty_lists.json").write_bytes(b'{"org_a": []}')
    with pytest.raises(UnreadableFileError, match=r"contains members"):
        read_organizations(tmp_path / "empty_lists.json")
