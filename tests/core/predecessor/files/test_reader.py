"""What stands whole in a file comes out, however the file is laid out, torn or glued; what does not is named."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from core.predecessor.files import (
    FileFinding,
    FilePosition,
    OldOrganization,
    UnreadableFileError,
    read_members,
    read_organizations,
)
from tests.support.predecessor_files import (
    A_ID,
    B_ID,
    C_ID,
    PREDECESSOR,
    A,
    B,
    C,
    ReadMembers,
    ReadOrganizations,
    findings,
    ids,
    member,
    members_text,
    organization,
    organizations_text,
    users,
)


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
        position=FilePosition("elsewhere.json", 1, 0),
    )
    assert isinstance(first, OldOrganization)
    assert (first.position.line, first.position.byte) == (2, 48)
    assert str(first.position) == "organizations.json line 2"


def test_the_torn_file_gives_all_24_organizations_and_names_the_four_tears() -> None:
    path = PREDECESSOR / "torn" / "organizations.json"
    items = list(read_organizations(path))
    assert len(ids(items)) == path.read_text().count('"id": ') == 24
    tear = "the beginning of this document was overwritten: everything before this position is lost"
    assert findings(items) == [
        ("loss", tear, 11, None),
        ("loss", tear, 20, None),
        ("loss", tear, 29, None),
        (
            "repair",
            "its key is damaged: the id was taken from the record",
            29,
            "org_3e5e761a-d0b7-4df6-afe2-d6a11178db6d",
        ),
    ]
    assert [f.kind for f in read_members(path.with_name("org_users.json")) if isinstance(f, FileFinding)] == ["loss"]


def test_poison_of_values_is_passed_on_as_written_and_an_empty_billing_id_is_none() -> None:
    items = list(read_organizations(PREDECESSOR / "poisoned" / "organizations.json"))
    records = [item for item in items if isinstance(item, OldOrganization)]
    assert [r.status for r in records][:2] == ["bogus", "active"]
    assert [r.plan_tier for r in records] == ["founders_friend", "starter", "profesional", "enterprise", "byok"]
    assert records[3].lago_customer_id is None
    assert findings(items) == [
        ("repair", "the empty lago_customer_id was imported as missing", 29, "org_626d0b03-5996-4a14-8b0c-7f9b6768e5f2")
    ]


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
    assert ("loss", "the file is empty: its content is lost; look for a backup of it") in [
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
    assert findings(items) == [("loss", "the file ends before the document is complete: the rest is lost", 19, None)]


def test_two_documents_glued_together_are_both_read(organizations: ReadOrganizations) -> None:
    items = organizations(organizations_text([A]) + organizations_text([B, C]))
    assert ids(items) == [A_ID, B_ID, C_ID]
    assert findings(items) == [("repair", "a second document begins in the same file: both were read", 11, None)]


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
    assert findings(items) == []


@pytest.mark.parametrize("indent", [None, 2])
def test_members_are_read_from_a_list_and_from_a_list_of_lists(members: ReadMembers, indent: int | None) -> None:
    lists = [[member(1, 0), member(1, 1)], [member(2, 0)]]
    expected = [(each["org_id"], each["user_id"]) for each in (*lists[0], *lists[1])]
    for form in ([*lists[0], *lists[1]], lists):
        items = members(json.dumps(form, indent=indent).encode())
        assert users(items) == expected
        assert findings(items) == []


def test_a_list_that_lost_its_beginning_is_still_a_loss(members: ReadMembers) -> None:
    text = members_text({A_ID: [member(1, 0)], B_ID: [member(2, 0)]})
    items = members(text[text.index(b"[") :])
    assert len(users(items)) == 2
    assert "loss" in [kind for kind, *_ in findings(items)]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_file_in_utf_16_is_refused_by_name(tmp_path: Path, encoding: str, indent: int | None) -> None:
    file = tmp_path / "org_users.json"
    file.write_bytes(members_text({A_ID: [member(1, 0)]}, indent).decode().encode(encoding))
    for read in (read_members, read_organizations):
        with pytest.raises(UnreadableFileError) as refused:
            list(read(file))
        assert str(refused.value) == f"{file} is UTF-16 or UTF-32 text: save it as UTF-8."


def test_a_file_of_windows_is_read(members: ReadMembers, organizations: ReadOrganizations) -> None:
    windows = ("\ufeff" + members_text({A_ID: [member(1, 0)]}).decode().replace("\n", "\r\n")).encode()
    items = members(windows)
    assert len(users(items)) == 1
    assert [(kind, reason) for kind, reason, *_ in findings(items)] == [("repair", "a byte order mark was skipped")]
    assert ids(organizations(organizations_text([A, B]).replace(b"\n", b"\r\n"))) == [A_ID, B_ID]


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
    assert findings(items) == [
        ("repair", f"it is stored under the key '{B_ID}': the id in the record was used", 1, A_ID)
    ]


def test_a_repeat_is_a_repair_when_it_is_the_same_and_a_loss_when_it_is_not(organizations: ReadOrganizations) -> None:
    changed = organization(2, plan_tier="enterprise")
    items = organizations(organizations_text([A, B]) + organizations_text([A, changed], indent=None))
    assert ids(items) == [A_ID, B_ID]
    first = [item.position.byte for item in items if isinstance(item, OldOrganization)]
    assert findings(items)[1:] == [
        ("repair", f"it occurs again here with the same content as at byte {first[0]}", 20, A_ID),
        (
            "loss",
            f"it occurs again here with different content: the one at byte {first[1]} was used, this one is lost",
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
        ("repair", "the key of its list is damage", f"{A_ID} user_0"),
    ]


def test_a_member_in_the_list_of_another_organization_belongs_where_it_says(members: ReadMembers) -> None:
    items = members(members_text({A_ID: [member(1, 0), member(2, 1), member(1, 2)]}))
    assert users(items) == [(A_ID, "user_0"), (B_ID, "user_1"), (A_ID, "user_2")]
    assert [(f[0], f[3]) for f in findings(items)] == [("repair", f"{B_ID} user_1")]
