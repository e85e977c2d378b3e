"""The two files, each record once: a repeat is told from the first that stands there, and named."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from core.predecessor.files.damage_scanner import Between
from core.predecessor.files.fields import (
    Fields,
    LostRecordError,
    billing_id_of,
    moment_of,
    name_of,
    organization_id_of,
    text_of,
)
from core.predecessor.files.grammar import (
    LIST_UNDER_KEY,
    MEMBER_FIELDS,
    NEXT_MEMBER,
    NEXT_ORGANIZATION,
    ORGANIZATION_FIELDS,
    string_of,
)
from core.predecessor.files.reader import Reader
from core.predecessor.files.records import Finding, OldMember, OldOrganization, OnBytes, Place, UnreadableFileError
from core.predecessor.files.window import READ, cannot_read, opened


def read_organizations(path: Path, on_bytes: OnBytes | None = None) -> Iterator[OldOrganization | Finding]:
    """The organizations of an ``organizations.json``, in the order of the file, findings where they were made.

    ``on_bytes`` is told how many bytes each read took; they add up to the size of the file. Status and plan
    are passed on as written. Raises UnreadableFileError, before the first record is asked for if it can.
    """
    if _looks_like(path) == "members":
        raise UnreadableFileError(_wrong_order(path, "members, not organizations"))
    return _organizations_once(path, on_bytes)


def read_members(path: Path, on_bytes: OnBytes | None = None) -> Iterator[OldMember | Finding]:
    """The members of an ``org_users.json``; all else as in ``read_organizations``. The role is passed on as written.

    Whether the organization exists is not judged here.
    """
    if _looks_like(path) == "organizations":
        raise UnreadableFileError(_wrong_order(path, "organizations, not members"))
    return _members_once(path, on_bytes)


def _wrong_order(path: Path, what: str) -> str:
    return f"{path} holds {what}: give organizations.json first and org_users.json second."


def _looks_like(path: Path) -> Literal["organizations", "members"] | None:
    """What the first bytes say beyond doubt; None for anything damaged, which is for the reader to judge."""
    with opened(path) as file:
        try:
            text = file.read(READ // 16).decode("latin-1")
        except OSError as error:
            raise UnreadableFileError(cannot_read(path, error)) from error
    organizations = any(f'"{name}"' in text for name in ORGANIZATION_FIELDS)
    lists = LIST_UNDER_KEY.search(text) is not None
    members = any(f'"{name}"' in text for name in MEMBER_FIELDS)
    if (lists or members) and not organizations:
        return "members"
    return "organizations" if organizations and not lists and not members else None


class _OrganizationReader(Reader[OldOrganization]):
    next_record = NEXT_ORGANIZATION
    known = ORGANIZATION_FIELDS
    opens_with = ""

    def fields(self, values: list[str | None]) -> Fields:
        org_id, name, created_at, plan_tier, lago_customer_id, stripe_customer_id, status = values
        return {
            "id": org_id,
            "name": string_of(name or ""),
            "created_at": created_at,
            "plan_tier": plan_tier,
            "lago_customer_id": lago_customer_id,
            "stripe_customer_id": stripe_customer_id,
            "status": status,
        }

    def build(self, fields: Fields, place: Place, repairs: list[Finding]) -> OldOrganization:
        org_id = organization_id_of(fields, "id")
        plan_tier, status = text_of(fields, "plan_tier"), text_of(fields, "status")
        return OldOrganization(
            org_id,
            name_of(fields, place, repairs, org_id),
            moment_of(fields, "created_at", place, repairs, org_id),
            plan_tier,
            billing_id_of(fields, "lago_customer_id", place, repairs, org_id),
            billing_id_of(fields, "stripe_customer_id", place, repairs, org_id),
            status,
            place,
        )

    def owner(self, record: OldOrganization) -> str:
        return record.id

    def subject(self, record: OldOrganization) -> str:
        return record.id

    def file_under(self, between: "Between", key: str | None, owner: str) -> str | None:  # noqa: ARG002 - an organization has no list
        if key is None:
            return "its key was torn off: the id was taken from the record"
        return None if key == owner else f"it stands under the key {key!r}: the id in the record was kept"


class _MemberReader(Reader[OldMember]):
    next_record = NEXT_MEMBER
    known = MEMBER_FIELDS
    opens_with = "["

    def fields(self, values: list[str | None]) -> Fields:
        org_id, user_id, role, joined_at = values
        return {"org_id": org_id, "user_id": user_id, "role": role, "joined_at": joined_at}

    def build(self, fields: Fields, place: Place, repairs: list[Finding]) -> OldMember:
        org_id, user_id = organization_id_of(fields, "org_id"), text_of(fields, "user_id")
        if not user_id:
            reason = "the field 'user_id' is empty"
            raise LostRecordError(reason)
        role = text_of(fields, "role")
        return OldMember(
            org_id, user_id, role, moment_of(fields, "joined_at", place, repairs, f"{org_id} {user_id}"), place
        )

    def owner(self, record: OldMember) -> str:
        return record.org_id

    def subject(self, record: OldMember) -> str:
        return f"{record.org_id} {record.user_id}"

    def file_under(self, between: "Between", key: str | None, owner: str) -> str | None:
        if key is not None:
            between.open_list(key)
        if between.list_key == owner:
            return None
        if between.list_key is None or between.list_key_in_doubt:
            between.open_list(owner)  # the others of this list need not say it again
            return "the key of its list was torn off: the organization was taken from the record"
        return f"it stands in the list of {between.list_key!r}: the organization in the record was kept"


def _organizations_once(path: Path, on_bytes: OnBytes | None) -> Iterator[OldOrganization | Finding]:
    reader = _OrganizationReader(path)
    first: dict[int, int] = {}
    for item in reader.scan(on_bytes):
        if isinstance(item, OldOrganization):
            before = first.setdefault(hash(item.id), item.place.byte)
            if before != item.place.byte:
                earlier = reader.at(before)
                if earlier is not None and earlier.id == item.id:
                    yield _repeated(item.id, item.place, before, same=earlier == item)
                    continue
        yield item


def _members_once(path: Path, on_bytes: OnBytes | None) -> Iterator[OldMember | Finding]:
    """A list comes once in a healthy file: only when one comes again is everybody before it remembered."""
    reader = _MemberReader(path)
    org_id, ended = "", set[int]()
    first: dict[int, int] = {}
    everybody = False
    for item in reader.scan(on_bytes):
        if isinstance(item, OldMember):
            byte = item.place.byte
            if item.org_id != org_id:
                ended.add(hash(org_id))
                org_id = item.org_id
                if not everybody:
                    everybody = hash(org_id) in ended
                    first = _members_before(path, byte) if everybody else {}
            before = first.setdefault(hash((org_id, item.user_id)), byte)
            if before != byte:
                earlier = reader.at(before)
                if earlier is not None and (earlier.org_id, earlier.user_id) == (org_id, item.user_id):
                    yield _repeated(reader.subject(item), item.place, before, same=earlier == item)
                    continue
        yield item


def _members_before(path: Path, byte: int) -> dict[int, int]:
    first: dict[int, int] = {}
    for item in _MemberReader(path).scan():
        if isinstance(item, OldMember):
            if item.place.byte >= byte:
                break
            first.setdefault(hash((item.org_id, item.user_id)), item.place.byte)
    return first


def _repeated(subject: str, place: Place, first: int, *, same: bool) -> Finding:
    if same:
        return Finding("repair", f"it stands here again with the same content as at byte {first}", place, subject)
    reason = f"it stands here again with other content: the one at byte {first} was kept, this one is lost"
    return Finding("loss", reason, place, subject)
