"""Loads the two files, each record once. A duplicate is compared with the first record and reported."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from core.predecessor.files.damage_scanner import DamageScanner
from core.predecessor.files.fields import (
    Fields,
    UnusableRecordError,
    customer_id_of,
    name_of,
    organization_id_of,
    text_of,
    timestamp_of,
)
from core.predecessor.files.grammar import (
    LIST_UNDER_KEY_PATTERN,
    MEMBER_FIELDS,
    NEXT_MEMBER_PATTERN,
    NEXT_ORGANIZATION_PATTERN,
    ORGANIZATION_FIELDS,
    parse_string,
)
from core.predecessor.files.reader import Reader
from core.predecessor.files.records import (
    FileFinding,
    FilePosition,
    OldMember,
    OldOrganization,
    OnBytes,
    UnreadableFileError,
)
from core.predecessor.files.window import READ_CHUNK_BYTES, open_file, read_error_message


def read_organizations(path: Path, on_bytes: OnBytes | None = None) -> Iterator[OldOrganization | FileFinding]:
    """Organizations and findings of an ``organizations.json``, in the order of the file.

    ``on_bytes`` gets the size of each read; they add up to the size of the file. Status and plan are not checked.
    Raises ``UnreadableFileError``, if possible before the first record is read.
    """
    if _detect_content(path) == "members":
        raise UnreadableFileError(_swapped_files_message(path, "members, not organizations"))
    return _unique_organizations(path, on_bytes)


def read_members(path: Path, on_bytes: OnBytes | None = None) -> Iterator[OldMember | FileFinding]:
    """Members and findings of an ``org_users.json``, as in ``read_organizations``. The role is not checked.

    Neither is whether the organization exists.
    """
    if _detect_content(path) == "organizations":
        raise UnreadableFileError(_swapped_files_message(path, "organizations, not members"))
    return _unique_members(path, on_bytes)


def _swapped_files_message(path: Path, what: str) -> str:
    return f"{path} contains {what}: pass organizations.json first and org_users.json second."


def _detect_content(path: Path) -> Literal["organizations", "members"] | None:
    """What the file contains, by its first bytes; None if they are unclear, for example damaged."""
    with open_file(path) as file:
        try:
            begin = file.read(READ_CHUNK_BYTES // 16)
        except OSError as error:
            raise UnreadableFileError(read_error_message(path, error)) from error
    if _is_utf_16(begin):
        message = f"{path} is UTF-16 or UTF-32 text: save it as UTF-8."
        raise UnreadableFileError(message)
    text = begin.decode("latin-1")
    has_organizations = any(f'"{name}"' in text for name in ORGANIZATION_FIELDS)
    has_lists = LIST_UNDER_KEY_PATTERN.search(text) is not None
    has_members = any(f'"{name}"' in text for name in MEMBER_FIELDS)
    if (has_lists or has_members) and not has_organizations:
        return "members"
    return "organizations" if has_organizations and not has_lists and not has_members else None


def _is_utf_16(begin: bytes) -> bool:
    """By its byte order mark, else by the zeros beside its first two characters. UTF-32 begins alike."""
    if begin.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True
    zeros = [byte == 0 for byte in begin[:4]]
    opening = begin[:2].replace(b"\0", b"")
    return opening in {b"{", b"["} and zeros in ([False, True, False, True], [True, False, True, False])


class _OrganizationReader(Reader[OldOrganization]):
    next_record = NEXT_ORGANIZATION_PATTERN
    known_fields = ORGANIZATION_FIELDS
    list_opening = ""

    def to_fields(self, values: list[str | None]) -> Fields:
        org_id, name, created_at, plan_tier, lago_customer_id, stripe_customer_id, status = values
        return {
            "id": org_id,
            "name": parse_string(name or ""),
            "created_at": created_at,
            "plan_tier": plan_tier,
            "lago_customer_id": lago_customer_id,
            "stripe_customer_id": stripe_customer_id,
            "status": status,
        }

    def build(self, fields: Fields, position: FilePosition, repairs: list[FileFinding]) -> OldOrganization:
        org_id = organization_id_of(fields, "id")
        plan_tier, status = text_of(fields, "plan_tier"), text_of(fields, "status")
        return OldOrganization(
            org_id,
            name_of(fields, position, repairs, org_id),
            timestamp_of(fields, "created_at", position, repairs, org_id),
            plan_tier,
            customer_id_of(fields, "lago_customer_id", position, repairs, org_id),
            customer_id_of(fields, "stripe_customer_id", position, repairs, org_id),
            status,
            position,
        )

    def owner(self, record: OldOrganization) -> str:
        return record.id

    def subject(self, record: OldOrganization) -> str:
        return record.id

    def check_key(self, scanner: "DamageScanner", key: str | None, owner: str) -> str | None:
        if key is None:
            return None if scanner.is_list else "its key is damaged: the id was taken from the record"
        return None if key == owner else f"it is stored under the key {key!r}: the id in the record was used"


class _MemberReader(Reader[OldMember]):
    next_record = NEXT_MEMBER_PATTERN
    known_fields = MEMBER_FIELDS
    list_opening = "["

    def to_fields(self, values: list[str | None]) -> Fields:
        org_id, user_id, role, joined_at = values
        return {"org_id": org_id, "user_id": user_id, "role": role, "joined_at": joined_at}

    def build(self, fields: Fields, position: FilePosition, repairs: list[FileFinding]) -> OldMember:
        org_id, user_id = organization_id_of(fields, "org_id"), text_of(fields, "user_id")
        if not user_id:
            reason = "the field 'user_id' is empty"
            raise UnusableRecordError(reason)
        role = text_of(fields, "role")
        return OldMember(
            org_id, user_id, role, timestamp_of(fields, "joined_at", position, repairs, f"{org_id} {user_id}"), position
        )

    def owner(self, record: OldMember) -> str:
        return record.org_id

    def subject(self, record: OldMember) -> str:
        return f"{record.org_id} {record.user_id}"

    def check_key(self, scanner: "DamageScanner", key: str | None, owner: str) -> str | None:
        if key is not None:
            scanner.open_list(key)
        if scanner.list_key == owner or scanner.is_list:
            return None
        if scanner.list_key is None or scanner.is_list_key_uncertain:
            scanner.open_list(owner)  # so that the other records of this list do not report it again
            return "the key of its list is damaged: the organization was taken from the record"
        return f"it is in the list of {scanner.list_key!r}: the organization in the record was used"


def _unique_organizations(path: Path, on_bytes: OnBytes | None) -> Iterator[OldOrganization | FileFinding]:
    reader = _OrganizationReader(path)
    first_offsets: dict[int, int] = {}
    for item in reader.scan(on_bytes):
        if isinstance(item, OldOrganization):
            first_offset = first_offsets.setdefault(hash(item.id), item.position.byte)
            if first_offset != item.position.byte:
                earlier = reader.read_at(first_offset)
                if earlier is not None and earlier.id == item.id:
                    yield _duplicate_finding(item.id, item.position, first_offset, same_content=earlier == item)
                    continue
        yield item


def _unique_members(path: Path, on_bytes: OnBytes | None) -> Iterator[OldMember | FileFinding]:
    """In a healthy file each list comes once. Only when one comes again are all members before it remembered."""
    reader = _MemberReader(path)
    org_id, ended_lists = "", set[int]()
    first_offsets: dict[int, int] = {}
    tracks_all_members = False
    for item in reader.scan(on_bytes):
        if isinstance(item, OldMember):
            byte = item.position.byte
            if item.org_id != org_id:
                ended_lists.add(hash(org_id))
                org_id = item.org_id
                if not tracks_all_members:
                    tracks_all_members = hash(org_id) in ended_lists
                    first_offsets = _member_offsets_before(path, byte) if tracks_all_members else {}
            first_offset = first_offsets.setdefault(hash((org_id, item.user_id)), byte)
            if first_offset != byte:
                earlier = reader.read_at(first_offset)
                if earlier is not None and (earlier.org_id, earlier.user_id) == (org_id, item.user_id):
                    yield _duplicate_finding(
                        reader.subject(item), item.position, first_offset, same_content=earlier == item
                    )
                    continue
        yield item


def _member_offsets_before(path: Path, byte: int) -> dict[int, int]:
    first_offsets: dict[int, int] = {}
    for item in _MemberReader(path).scan():
        if isinstance(item, OldMember):
            if item.position.byte >= byte:
                break
            first_offsets.setdefault(hash((item.org_id, item.user_id)), item.position.byte)
    return first_offsets


def _duplicate_finding(subject: str, position: FilePosition, first_offset: int, *, same_content: bool) -> FileFinding:
    if same_content:
        return FileFinding(
            "repair", f"it occurs again here with the same content as at byte {first_offset}", position, subject
        )
    reason = f"it occurs again here with different content: the one at byte {first_offset} was used, this one is lost"
    return FileFinding("loss", reason, position, subject)
