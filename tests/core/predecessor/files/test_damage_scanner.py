"""Damage of every kind and at every byte: what is whole comes out, what is not is named, and nothing raises."""

import json
from collections.abc import Iterable
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.predecessor.files import FileFinding
from core.predecessor.files.records import UnreadableFileError
from tests.support.predecessor_files import (
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
    if sum(not isinstance(item, FileFinding) for item in items) < len(parts(healthy)):
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


@pytest.mark.parametrize("indent", [None, 2])
def test_members_that_are_cut_at_the_bracket_of_a_list_are_no_whole_list(
    members: ReadMembers, indent: int | None
) -> None:
    """A list of members is a form of the file, but one that an object's end follows was under a key."""
    healthy = members_text(CUT_LISTS, indent)
    for head in (index for index, byte in enumerate(healthy) if byte == ord("[")):
        assert_all_that_is_whole_comes_out(healthy[head:], healthy, list(members(healthy[head:])))


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
    if junk[:2] in {b"\xff\xfe", b"\xfe\xff"} or b"\0" in junk[:4]:
        with suppress(UnreadableFileError):  # UTF-16 is refused by name
            organizations(junk)
        return
    items = organizations(junk)
    if junk.strip(b" \t\r\n{}[],"):
        assert items
