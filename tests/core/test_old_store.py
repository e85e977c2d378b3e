"""Whatever state the old store's files are in: what is whole comes out, what is not is named, and nothing raises."""

import json
import stat
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.old_store import (
    Finding,
    OldMember,
    OldOrganization,
    Place,
    UnreadableFileError,
    UnwritableFileError,
    read_members,
    read_organizations,
    write_members,
    write_organizations,
)

PREDECESSOR = Path(__file__).parent.parent / "data" / "predecessor"
NAMES = [
    "Acme",
    "Überwald",
    "東京データ",
    "O'Neil & Söhne",
    "شركة النور",
    'The "Quoted" {Co}',
    "[x], Łódź: \\",
    "\U0001f99a",
]

Text: TypeAlias = dict[str, object]


def organization(number: int, **changes: object) -> Text:
    fields: Text = {
        "id": f"org_{number:08d}-aaaa",
        "name": f"{NAMES[number % len(NAMES)]} {number}",
        "created_at": f"2025-03-04 05:06:{number % 60:02}.{number + 1:06}",
        "plan_tier": "starter",
        "lago_customer_id": None,
        "stripe_customer_id": f"cus_{number}" if number % 3 == 0 else None,
        "status": "active",
    }
    return {name: value for name, value in (fields | changes).items() if value is not ...}


def member(number: int, user: int, **changes: object) -> Text:
    fields: Text = {
        "org_id": f"org_{number:08d}-aaaa",
        "user_id": f"user_{user}",
        "role": "owner" if user == 0 else "member",
        "joined_at": f"2025-03-04 05:06:07.{user + 1:06}",
    }
    return {name: value for name, value in (fields | changes).items() if value is not ...}


def organizations_text(records: Iterable[Text], indent: int | None = 2) -> bytes:
    return json.dumps({str(record["id"]): record for record in records}, indent=indent).encode()


def members_text(lists: dict[str, list[Text]], indent: int | None = 2) -> bytes:
    return json.dumps(lists, indent=indent).encode()


@pytest.fixture
def organizations(tmp_path: Path) -> Callable[[bytes], list[OldOrganization | Finding]]:
    def read(content: bytes) -> list[OldOrganization | Finding]:
        path = tmp_path / "organizations.json"
        path.write_bytes(content)
        return list(read_organizations(path))

    return read


@pytest.fixture
def members(tmp_path: Path) -> Callable[[bytes], list[OldMember | Finding]]:
    def read(content: bytes) -> list[OldMember | Finding]:
        path = tmp_path / "org_users.json"
        path.write_bytes(content)
        return list(read_members(path))

    return read


ReadOrganizations: TypeAlias = Callable[[bytes], list[OldOrganization | Finding]]
ReadMembers: TypeAlias = Callable[[bytes], list[OldMember | Finding]]


def findings(items: Iterable[object]) -> list[tuple[str, str, int, str | None]]:
    return [(i.kind, i.reason, i.place.line, i.subject) for i in items if isinstance(i, Finding)]


def ids(items: Iterable[object]) -> list[str]:
    return [item.id for item in items if isinstance(item, OldOrganization)]


def users(items: Iterable[object]) -> list[tuple[str, str]]:
    return [(item.org_id, item.user_id) for item in items if isinstance(item, OldMember)]


# --- the files the old store really wrote ---


@pytest.mark.parametrize("state", ["healthy", "poisoned"])
def test_files_that_parse_give_exactly_what_they_hold(state: str) -> None:
    folder = PREDECESSOR / state
    held = json.loads((folder / "organizations.json").read_bytes())
    assert ids(read_organizations(folder / "organizations.json")) == list(held)
    lists = json.loads((folder / "org_users.json").read_bytes())
    assert users(read_members(folder / "org_users.json")) == [(o, m["user_id"]) for o, ms in lists.items() for m in ms]


def test_a_healthy_file_has_nothing_to_say_about_itself() -> None:
    assert findings(read_organizations(PREDECESSOR / "healthy" / "organizations.json")) == []
    assert findings(read_members(PREDECESSOR / "healthy" / "org_users.json")) == []


def test_a_record_carries_its_fields_its_place_and_utc() -> None:
    first = next(iter(read_organizations(PREDECESSOR / "healthy" / "organizations.json")))
    assert first == OldOrganization(
        id="org_cf3906a1-33af-4f6a-bfa5-12e26ea0c8d2",
        name="Acme Corporation",
        created_at=datetime(2026, 11, 23, 7, 38, 39, 616401, tzinfo=UTC),
        plan_tier="professional",
        lago_customer_id="lago_cust_abc123xyz",
        stripe_customer_id="cus_StripeABC123",
        status="active",
        place=Place("elsewhere.json", 1, 0),
    )
    assert isinstance(first, OldOrganization)
    assert (first.place.line, first.place.byte) == (2, 48)
    assert str(first.place) == "organizations.json line 2"


def test_the_torn_file_gives_all_24_organizations_and_names_the_four_tears() -> None:
    path = PREDECESSOR / "torn" / "organizations.json"
    items = list(read_organizations(path))
    assert len(ids(items)) == path.read_text().count('"id": ') == 24
    tear = "the beginning of this document was overwritten: what stood before this place is lost"
    assert findings(items) == [
        ("loss", tear, 11, None),
        ("loss", tear, 20, None),
        ("loss", tear, 29, None),
        (
            "repair",
            "its key was torn off: the id was taken from the record",
            29,
            "org_3e5e761a-d0b7-4df6-afe2-d6a11178db6d",
        ),
    ]
    assert [f.kind for f in read_members(path.with_name("org_users.json")) if isinstance(f, Finding)] == ["loss"]


def test_poison_of_values_is_passed_on_as_written_and_an_empty_billing_id_is_none() -> None:
    items = list(read_organizations(PREDECESSOR / "poisoned" / "organizations.json"))
    records = [item for item in items if isinstance(item, OldOrganization)]
    assert [r.status for r in records][:2] == ["bogus", "active"]
    assert [r.plan_tier for r in records] == ["founders_friend", "starter", "profesional", "enterprise", "byok"]
    assert records[3].lago_customer_id is None
    assert findings(items) == [
        ("repair", "the empty lago_customer_id was read as none", 29, "org_626d0b03-5996-4a14-8b0c-7f9b6768e5f2")
    ]


# --- structure that is not as it should be ---

A, B, C = organization(1), organization(2), organization(3)
A_ID, B_ID, C_ID = "org_00000001-aaaa", "org_00000002-aaaa", "org_00000003-aaaa"


@pytest.mark.parametrize("indent", [None, 0, 1, 2, 7])
def test_any_layout_of_healthy_json_reads_the_same(
    organizations: ReadOrganizations, members: ReadMembers, indent: int | None
) -> None:
    records = [organization(n) for n in range(20)]
    assert organizations(organizations_text(records, indent)) == organizations(organizations_text(records))
    lists = {f"org_{n:08d}-aaaa": [member(n, u) for u in range(n % 4)] for n in range(20)}
    assert members(members_text(lists, indent)) == members(members_text(lists))
    assert len(members(members_text(lists, indent))) == 30
    raw = json.dumps({r["id"]: dict(reversed(r.items())) for r in map(dict, records)}, ensure_ascii=False)
    assert organizations(raw.encode()) == organizations(organizations_text(records))


@pytest.mark.parametrize("content", [b"", b" \n\n ", b"\xef\xbb\xbf"])
def test_an_empty_file_is_a_loss_because_the_old_store_emptied_files_before_writing(
    organizations: ReadOrganizations, content: bytes
) -> None:
    assert ("loss", "the file holds nothing: what it held is lost; look for a copy of it") in [
        f[:2] for f in findings(organizations(content))
    ]


def test_an_empty_object_is_healthy(organizations: ReadOrganizations, members: ReadMembers) -> None:
    assert organizations(b"{}") == []
    assert members(b"{}") == []
    assert members(b'{"org_a": [], "org_b": []}') == []


def test_a_byte_order_mark_is_named_and_costs_nothing(organizations: ReadOrganizations) -> None:
    items = organizations(b"\xef\xbb\xbf" + organizations_text([A, B]))
    assert ids(items) == [A_ID, B_ID]
    assert findings(items) == [("repair", "a byte order mark was skipped", 1, None)]


def test_a_truncated_file_names_the_record_it_cut(organizations: ReadOrganizations) -> None:
    whole = organizations_text([A, B])
    items = organizations(whole[:-60])
    assert ids(items) == [A_ID]
    [(kind, reason, line, subject)] = findings(items)
    assert (kind, line, subject) == ("loss", 11, B_ID)
    assert reason.startswith("a record is cut off by the end of the file")


def test_a_file_cut_between_records_still_says_that_its_end_is_missing(organizations: ReadOrganizations) -> None:
    items = organizations(organizations_text([A, B])[:-2])
    assert ids(items) == [A_ID, B_ID]
    assert findings(items) == [("loss", "the file ends before its document does: what followed is lost", 19, None)]


def test_two_documents_glued_together_are_both_read(organizations: ReadOrganizations) -> None:
    items = organizations(organizations_text([A]) + organizations_text([B, C]))
    assert ids(items) == [A_ID, B_ID, C_ID]
    assert findings(items) == [("repair", "another document begins in the same file: both were read", 11, None)]


def test_nul_bytes_are_a_loss_with_their_number(organizations: ReadOrganizations) -> None:
    items = organizations(organizations_text([A]) + b"\0" * 5000)
    assert ids(items) == [A_ID]
    assert findings(items) == [("loss", "5000 bytes of NUL: overwritten or never written", 11, None)]


def test_a_record_that_is_not_utf8_is_lost_by_name(organizations: ReadOrganizations) -> None:
    text = organizations_text([A, B]).replace(b"\\u00dcberwald", b"\xdcberwald")
    items = organizations(text)
    assert ids(items) == [B_ID]
    assert findings(items) == [("loss", "the record is not UTF-8 text", 2, A_ID)]


@pytest.mark.parametrize("content", [b"hello", b"\x1f\x8b\x08\0\0\xff", b"{{{{[[[", b'"' * 999, b"[" * 100_000])
def test_what_is_no_json_at_all_is_a_loss_and_no_exception(organizations: ReadOrganizations, content: bytes) -> None:
    assert any(kind == "loss" for kind, *_ in findings(organizations(content)))


def test_a_list_at_the_top_is_read(organizations: ReadOrganizations) -> None:
    items = organizations(json.dumps([A, B], indent=2).encode())
    assert ids(items) == [A_ID, B_ID]
    assert [f[1] for f in findings(items)] == [
        "the file holds a list where an object belongs",
        "its key was torn off: the id was taken from the record",
        "its key was torn off: the id was taken from the record",
    ]


def test_what_stands_under_a_key_and_is_no_record_is_named_by_its_key(organizations: ReadOrganizations) -> None:
    text = json.dumps({A_ID: A, "org_x": None, "org_y": [1, {"a": {}}], "org_z": {}, B_ID: B, "org_last": 5})
    items = organizations(text.encode())
    assert ids(items) == [A_ID, B_ID]
    assert [f[3] for f in findings(items) if f[0] == "loss" and f[3]] == ["org_x", "org_y", "org_z", "org_last"]


def test_a_record_that_closed_over_others_gives_them_back(organizations: ReadOrganizations) -> None:
    text = organizations_text([A, B, C])
    begin, end = text.index(b'"name"'), text.index(f'"{B_ID}"'.encode())
    items = organizations(text[:begin] + b" " * (end - begin) + text[end:])
    assert ids(items) == [B_ID, C_ID]
    assert ("loss", A_ID) in [(f[0], f[3]) for f in findings(items)]


def test_text_in_a_name_never_poses_as_a_record(organizations: ReadOrganizations) -> None:
    posing = organization(1, name=json.dumps(organization(666)))
    text = organizations_text([posing, B])
    assert ids(organizations(text)) == [A_ID, B_ID]
    assert ids(organizations(text[30:])) == [B_ID]


def test_key_and_id_that_disagree_are_named_and_the_record_counts(organizations: ReadOrganizations) -> None:
    items = organizations(json.dumps({B_ID: A}).encode())
    assert ids(items) == [A_ID]
    assert findings(items) == [("repair", f"it stands under the key '{B_ID}': the id in the record was kept", 1, A_ID)]


def test_a_repeat_is_a_repair_when_it_is_the_same_and_a_loss_when_it_is_not(organizations: ReadOrganizations) -> None:
    changed = organization(2, plan_tier="enterprise")
    items = organizations(organizations_text([A, B]) + organizations_text([A, changed], indent=None))
    assert ids(items) == [A_ID, B_ID]
    first = [item.place.byte for item in items if isinstance(item, OldOrganization)]
    assert findings(items)[1:] == [
        ("repair", f"it stands here again with the same content as at byte {first[0]}", 20, A_ID),
        (
            "loss",
            f"it stands here again with other content: the one at byte {first[1]} was kept, this one is lost",
            20,
            B_ID,
        ),
    ]


def test_members_repeated_in_a_second_document_are_found_however_far_the_first(members: ReadMembers) -> None:
    lists = {f"org_{n:08d}-aaaa": [member(n, u) for u in range(3)] for n in range(50)}
    again = {A_ID: [member(1, 0), member(1, 1, role="owner"), member(1, 9)], "org_new": []}
    items = members(members_text(lists) + members_text(again))
    assert len(users(items)) == 151
    assert [(kind, subject) for kind, _, _, subject in findings(items)] == [
        ("repair", None),
        ("repair", f"{A_ID} user_0"),
        ("loss", f"{A_ID} user_1"),
    ]


# --- members ---


def test_a_torn_member_is_named_and_its_neighbours_are_kept(members: ReadMembers) -> None:
    text = members_text({A_ID: [member(1, 0), member(1, 1), member(1, 2)], B_ID: [member(2, 0)]})
    items = members(text.replace(b'"user_id": "user_1",', b'"user_id": "user_1"\xff,'))
    assert users(items) == [(A_ID, "user_0"), (A_ID, "user_2"), (B_ID, "user_0")]
    [(kind, reason, line, subject)] = findings(items)
    assert (kind, line, subject) == ("loss", 9, f"{A_ID} user_1")
    assert reason.startswith("a damaged record, ")


def test_a_list_whose_key_is_torn_off_is_read_and_says_so_once(members: ReadMembers) -> None:
    text = members_text({A_ID: [member(1, 0), member(1, 1)], B_ID: [member(2, 0)]})
    items = members(text[10:])
    assert users(items) == [(A_ID, "user_0"), (A_ID, "user_1"), (B_ID, "user_0")]
    assert [(f[0], f[1][:29], f[3]) for f in findings(items)] == [
        ("loss", "the beginning of this documen", None),
        ("repair", "the key of its list was torn ", f"{A_ID} user_0"),
    ]


def test_a_member_in_the_list_of_another_organization_belongs_where_it_says(members: ReadMembers) -> None:
    items = members(members_text({A_ID: [member(1, 0), member(2, 1), member(1, 2)]}))
    assert users(items) == [(A_ID, "user_0"), (B_ID, "user_1"), (A_ID, "user_2")]
    assert [(f[0], f[3]) for f in findings(items)] == [("repair", f"{B_ID} user_1")]


# --- fields ---


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": ...}, "the field 'id' is missing"),
        ({"name": ...}, "the field 'name' is missing"),
        ({"plan_tier": 3}, "the field 'plan_tier' is a number, not a text"),
        ({"status": None}, "the field 'status' is null, not a text"),
        ({"lago_customer_id": ["x"]}, "the field 'lago_customer_id' is a list, not a text"),
        ({"stripe_customer_id": False}, "the field 'stripe_customer_id' is true or false, not a text"),
        ({"name": {"de": "x"}}, "the field 'name' is an object, not a text"),
        ({"plan_tier": "a\0b"}, "the field 'plan_tier' holds a character that no database takes"),
        ({"status": "\ud800"}, "the field 'status' holds a character that no database takes"),
        ({"id": "org_a.b"}, "the id 'org_a.b' is not 'org_' with letters, digits, '-' and '_' alone"),
        ({"id": "org_a\n"}, "the id 'org_a\\n' is not 'org_' with letters, digits, '-' and '_' alone"),
        ({"id": "acme"}, "the id 'acme' is not 'org_' with letters, digits, '-' and '_' alone"),
    ],
)
def test_a_record_without_a_field_that_it_needs_is_lost_with_the_field_named(
    organizations: ReadOrganizations, changes: dict[str, object], reason: str
) -> None:
    text = json.dumps({A_ID: organization(1, **changes), B_ID: B}, indent=2)
    items = organizations(text.encode())
    assert ids(items) == [B_ID]
    [(kind, found, line, subject)] = findings(items)
    assert (kind, found, line) == ("loss", f"no usable record: {reason}", 2)
    assert subject == changes.get("id", A_ID) or (changes.get("id") is ... and subject == A_ID)


def test_a_field_that_stands_twice_is_never_chosen_from(organizations: ReadOrganizations) -> None:
    text = organizations_text([A, B]).replace(b'"plan_tier"', b'"name": "x", "plan_tier"', 1)
    items = organizations(text)
    assert ids(items) == [B_ID]
    assert findings(items)[0][1].startswith("no usable record: the field 'name' stands twice in it")


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
        (1732347519, "created_at is a number, not a date: left out"),
        ("2026-13-23 07:38:39", "created_at is no date that can be read: left out"),
        ("0001-01-01T00:00:00+14:00", "created_at is no date that can be read: left out"),
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
        ("a\0b\ud800", "ab\ufffd", "characters that no database takes were left out of the name"),
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
        ("repair", "the unknown field 'logo' was left out, once", 53, None),
        ("repair", "the unknown field 'seats' was left out, 3 times", 2, None),
        ("repair", "the unknown field 'settings' was left out, 3 times", 2, None),
        ("repair", "the unknown field 'tags' was left out, 3 times", 2, None),
    ]


# --- errors a person can make ---


def test_a_missing_file_a_folder_and_the_wrong_order_are_one_clear_sentence(tmp_path: Path) -> None:
    healthy = PREDECESSOR / "healthy"
    with pytest.raises(UnreadableFileError, match=r"gone\.json is not there: check the path\."):
        read_organizations(tmp_path / "gone.json")
    with pytest.raises(UnreadableFileError, match="is not a file: give the path of the JSON file itself"):
        read_members(tmp_path)
    with pytest.raises(UnreadableFileError, match=r"holds members, not organizations: give organizations\.json first"):
        read_organizations(healthy / "org_users.json")
    with pytest.raises(UnreadableFileError, match=r"holds organizations, not members: give organizations\.json first"):
        read_members(healthy / "organizations.json")
    (tmp_path / "empty_lists.json").write_bytes(b'{"org_a": []}')
    with pytest.raises(UnreadableFileError, match=r"holds members"):
        read_organizations(tmp_path / "empty_lists.json")


# --- damage of every kind ---

CUT_RECORDS = [organization(n) for n in range(6)]
CUT_LISTS = {f"org_{n:08d}-aaaa": [member(n, u) for u in range((2, 0, 3, 1)[n % 4])] for n in range(8)}
INDENTS = st.sampled_from([2, None])
any_bytes = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def parts(text: bytes) -> list[tuple[str, bytes]]:
    """Who stands in a healthy file, each with the exact bytes of the record; found by a plain JSON decoder."""
    decoder, decoded, found, at = json.JSONDecoder(), text.decode(), [], 1
    while (at := decoded.find("{", at)) >= 0:
        record, end = decoder.raw_decode(decoded, at)
        subject = record["id"] if "id" in record else f"{record['org_id']} {record['user_id']}"
        found.append((subject, decoded[at:end].encode()))
        at = end
    return found


def subjects(items: Iterable[object]) -> set[str]:
    return {*ids(items), *(f"{org_id} {user_id}" for org_id, user_id in users(items))}


def assert_all_that_is_whole_comes_out(damaged: bytes, healthy: bytes, items: list[object]) -> None:
    whole = {subject for subject, record in parts(healthy) if record in damaged}
    assert whole <= subjects(items)
    if sum(not isinstance(item, Finding) for item in items) < len(parts(healthy)):
        assert any(kind == "loss" for kind, *_ in findings(items)), "a record is gone and nothing says so"


@given(cut=st.integers(0, 3000), head=st.integers(0, 3000), indent=INDENTS)
@any_bytes
def test_cut_at_any_byte_every_whole_organization_comes_out(
    organizations: ReadOrganizations, cut: int, head: int, indent: int | None
) -> None:
    healthy = organizations_text(CUT_RECORDS, indent)
    for damaged in (healthy[:cut], healthy[head:]):
        assert_all_that_is_whole_comes_out(damaged, healthy, list(organizations(damaged)))
    if cut < len(healthy):
        assert any(kind == "loss" for kind, *_ in findings(organizations(healthy[:cut])))


@given(cut=st.integers(0, 3000), head=st.integers(0, 3000), indent=INDENTS)
@any_bytes
def test_cut_at_any_byte_every_whole_member_comes_out(
    members: ReadMembers, cut: int, head: int, indent: int | None
) -> None:
    healthy = members_text(CUT_LISTS, indent)
    for damaged in (healthy[:cut], healthy[head:]):
        assert_all_that_is_whole_comes_out(damaged, healthy, list(members(damaged)))
    if cut < len(healthy):
        assert any(kind == "loss" for kind, *_ in findings(members(healthy[:cut])))


SPANS = st.binary(max_size=60) | st.text('{}[]",:\\ \n\0aoid_', max_size=60).map(str.encode)


@given(at=st.integers(0, 1600), span=SPANS, indent=INDENTS)
@any_bytes
def test_overwritten_anywhere_every_whole_organization_comes_out(
    organizations: ReadOrganizations, at: int, span: bytes, indent: int | None
) -> None:
    healthy = organizations_text(CUT_RECORDS, indent)
    damaged = healthy[:at] + span + healthy[at + len(span) :]
    assert_all_that_is_whole_comes_out(damaged, healthy, list(organizations(damaged)))


@given(at=st.integers(0, 1800), span=SPANS, indent=INDENTS)
@any_bytes
def test_overwritten_anywhere_every_whole_member_comes_out(
    members: ReadMembers, at: int, span: bytes, indent: int | None
) -> None:
    healthy = members_text(CUT_LISTS, indent)
    damaged = healthy[:at] + span + healthy[at + len(span) :]
    assert_all_that_is_whole_comes_out(damaged, healthy, list(members(damaged)))


@given(cut=st.integers(0, 3000), head=st.integers(0, 3000), indent=INDENTS, other=INDENTS)
@any_bytes
def test_a_short_file_written_over_a_long_one_keeps_every_whole_record_of_both(
    organizations: ReadOrganizations, cut: int, head: int, indent: int | None, other: int | None
) -> None:
    first, second = organizations_text(CUT_RECORDS[:4], indent), organizations_text(CUT_RECORDS[2:], other)
    damaged = first[:cut] + second[head:]
    items = list(organizations(damaged))
    whole = {subject for text in (first, second) for subject, record in parts(text) if record in damaged}
    assert whole <= subjects(items)


@given(st.binary(max_size=400) | st.text('{}[]",:\\ \n\0aoid_1', max_size=400).map(str.encode))
@any_bytes
def test_no_bytes_make_it_raise_and_none_vanish_without_a_word(organizations: ReadOrganizations, junk: bytes) -> None:
    items = organizations(junk)
    if junk.strip(b" \t\r\n{}[],"):
        assert items


# --- size ---


def test_damage_longer_than_the_window_is_one_loss_and_what_follows_is_read(organizations: ReadOrganizations) -> None:
    garbage = (bytes(range(256)) * 12_000).translate(None, b'{}[]",:\\')
    text = organizations_text([A, B, C])
    at = text.index(f'"{B_ID}"'.encode())
    items = organizations(text[:at] + garbage + text[at:])
    assert ids(items) == [A_ID, B_ID, C_ID]
    assert [(f[0], f[1]) for f in findings(items)] == [("loss", f"{len(garbage)} bytes outside any record")]


def test_records_across_every_border_of_the_window_come_out_and_memory_stays_flat(tmp_path: Path) -> None:
    path = tmp_path / "org_users.json"
    numbers = range(4000)
    path.write_bytes(members_text({f"org_{n:08d}-aaaa": [member(n, u) for u in range(10)] for n in numbers}))
    told: list[int] = []
    tracemalloc.start()
    try:
        count = sum(isinstance(item, OldMember) for item in read_members(path, told.append))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 40_000
    assert sum(told) == path.stat().st_size > 5_000_000
    assert peak < 6_000_000


@pytest.mark.parametrize("backwards", [False, True])
def test_no_border_of_the_window_cuts_a_key_or_a_record(
    organizations: ReadOrganizations, members: ReadMembers, *, backwards: bool
) -> None:
    padding = [organization(n, name="x" * 195_000) for n in range(6)]  # the first border stands 6 kB behind four
    small = [organization(n, plan_tier="p" * 40) for n in range(6, 46)]
    for shift in range(0, 330, 3):
        records = [organization(99, plan_tier="p" * shift), *padding[:4], *small, *padding[4:]]
        laid_out = [dict(reversed(record.items())) if backwards else record for record in records]
        items = organizations(organizations_text(laid_out, None))
        assert len(ids(items)) == len(records)
        assert {reason[:10] for _, reason, *_ in findings(items)} == {"the name i"}
        lists = {f"org_{n:08d}-aaaa": [member(n, u) for u in range(n % 3)] for n in range(1, 90)}
        lists["org_last"] = [member(0, n, org_id="org_last", role="x" * 195_000) for n in range(2)]
        first = [member(0, n, role="x" * 195_000) for n in range(4)] + [member(0, 4, role="x" * shift)]
        again = members(members_text({"org_00000000-aaaa": first} | lists, None))
        assert len(users(again)) == 5 + 90 + 2
        assert findings(again) == []


# --- the way back ---


def copy_of(folder: Path, target: Path) -> None:
    items = read_organizations(folder / "organizations.json")
    write_organizations(target / "organizations.json", (i for i in items if isinstance(i, OldOrganization)))
    lists = json.loads((folder / "org_users.json").read_bytes())
    people = (i for i in read_members(folder / "org_users.json") if isinstance(i, OldMember))
    listed = {org_id: list(group) for org_id, group in groupby(people, lambda member: member.org_id)}
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
