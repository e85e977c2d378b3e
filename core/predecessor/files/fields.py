"""The fields of one record, checked: each value, or the reason why it is unusable. No value is invented."""

from datetime import UTC, datetime
from typing import TypeAlias

from core.predecessor.files.grammar import OLD_ORGANIZATION_ID_PATTERN, Pairs
from core.predecessor.files.records import FileFinding, FilePosition

Fields: TypeAlias = dict[str, object]

MAX_OLD_NAME_LENGTH = 200


class UnusableRecordError(Exception):
    """An intact object that is no usable record. The message is the reason."""


def reject_duplicate_fields(pairs: Pairs, fields: Fields) -> None:
    if len(fields) != len(pairs):
        duplicate = next(name for name in fields if sum(name == other for other, _ in pairs) > 1)
        reason = f"the field {duplicate!r} occurs twice: two records may have been merged"
        raise UnusableRecordError(reason)


def subject_of(fields: Fields) -> str | None:
    org_id, user_id = fields.get("id", fields.get("org_id")), fields.get("user_id")
    if not isinstance(org_id, str):
        return None
    return f"{org_id} {user_id}" if isinstance(user_id, str) else org_id


def text_of(fields: Fields, name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise UnusableRecordError(_not_text_reason(fields, name))
    if not _is_storable(value):
        reason = f"the field {name!r} contains a character that cannot be stored"
        raise UnusableRecordError(reason)
    return value


def organization_id_of(fields: Fields, name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise UnusableRecordError(_not_text_reason(fields, name))
    if not OLD_ORGANIZATION_ID_PATTERN.fullmatch(value):
        # Lago reads an id with a dot in it as the id of another customer (lago.md 3.4).
        reason = f"the {name} {value!r} must be 'org_' followed by letters, digits, '-' or '_' only"
        raise UnusableRecordError(reason)
    return value


def name_of(fields: Fields, position: FilePosition, repairs: list[FileFinding], subject: str) -> str:
    value = fields.get("name")
    if not isinstance(value, str):
        raise UnusableRecordError(_not_text_reason(fields, "name"))
    if not _is_storable(value):
        value = value.replace("\x00", "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        repairs.append(
            FileFinding("repair", "characters that cannot be stored were removed from the name", position, subject)
        )
    if not value.strip():
        repairs.append(FileFinding("repair", "the name is empty", position, subject))
    elif len(value) > MAX_OLD_NAME_LENGTH:
        reason = f"the name is {len(value)} characters long, more than {MAX_OLD_NAME_LENGTH}"
        repairs.append(FileFinding("repair", reason, position, subject))
    return value


def customer_id_of(
    fields: Fields, name: str, position: FilePosition, repairs: list[FileFinding], subject: str
) -> str | None:
    if fields.get(name) is None:
        return None
    value = text_of(fields, name)
    if value.strip():
        return value
    repairs.append(FileFinding("repair", f"the empty {name} was imported as missing", position, subject))
    return None


def timestamp_of(
    fields: Fields, name: str, position: FilePosition, repairs: list[FileFinding], subject: str
) -> datetime | None:
    value = fields.get(name)
    try:
        if isinstance(value, str):
            timestamp = datetime.fromisoformat(value)
            # The predecessor wrote utcnow(), without an offset.
            return timestamp.replace(tzinfo=UTC) if timestamp.tzinfo is None else timestamp.astimezone(UTC)
        reason = f"there is no {name}" if value is None else f"{name} is {_json_type(value)}, not a date: ignored"
    except (ValueError, OverflowError):
        reason = f"{name} is not a readable date: ignored"
    repairs.append(FileFinding("repair", reason, position, subject))
    return None


def _not_text_reason(fields: Fields, name: str) -> str:
    if name not in fields:
        return f"the field {name!r} is missing"
    return f"the field {name!r} is {_json_type(fields[name])}, not text"


def _json_type(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case tuple():
            return "an object"
    return "a list"


def _is_storable(value: str) -> bool:
    if "\x00" in value:
        return False
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
