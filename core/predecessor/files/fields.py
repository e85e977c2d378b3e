"""The fields of one record: taken as they are meant, or the reason why not. Nothing is invented."""

from datetime import UTC, datetime
from typing import TypeAlias

from core.predecessor.files.grammar import ORGANIZATION_ID, Pairs
from core.predecessor.files.records import Finding, Place

Fields: TypeAlias = dict[str, object]

LONGEST_NAME = 200


class LostRecordError(Exception):
    """An intact object that is no usable record; the text is the reason."""


def refuse_fields_twice(pairs: Pairs, fields: Fields) -> None:
    if len(fields) != len(pairs):
        twice = next(name for name in fields if sum(name == other for other, _ in pairs) > 1)
        reason = f"the field {twice!r} stands twice in it: two records may have run together"
        raise LostRecordError(reason)


def named(fields: Fields) -> str | None:
    org_id, user_id = fields.get("id", fields.get("org_id")), fields.get("user_id")
    if not isinstance(org_id, str):
        return None
    return f"{org_id} {user_id}" if isinstance(user_id, str) else org_id


def text_of(fields: Fields, name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise LostRecordError(_not_text(fields, name))
    if not _is_storable(value):
        reason = f"the field {name!r} holds a character that no database takes"
        raise LostRecordError(reason)
    return value


def organization_id_of(fields: Fields, name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise LostRecordError(_not_text(fields, name))
    if not ORGANIZATION_ID.fullmatch(value):
        # Lago reads an id with a dot in it as another customer's (lago.md 3.4).
        reason = f"the {name} {value!r} is not 'org_' with letters, digits, '-' and '_' alone"
        raise LostRecordError(reason)
    return value


def name_of(fields: Fields, place: Place, repairs: list[Finding], subject: str) -> str:
    value = fields.get("name")
    if not isinstance(value, str):
        raise LostRecordError(_not_text(fields, "name"))
    if not _is_storable(value):
        value = value.replace("\x00", "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        repairs.append(Finding("repair", "characters that no database takes were left out of the name", place, subject))
    if not value.strip():
        repairs.append(Finding("repair", "the name is empty", place, subject))
    elif len(value) > LONGEST_NAME:
        reason = f"the name is {len(value)} characters long, more than {LONGEST_NAME}"
        repairs.append(Finding("repair", reason, place, subject))
    return value


def billing_id_of(fields: Fields, name: str, place: Place, repairs: list[Finding], subject: str) -> str | None:
    if fields.get(name) is None:
        return None
    value = text_of(fields, name)
    if value.strip():
        return value
    repairs.append(Finding("repair", f"the empty {name} was read as none", place, subject))
    return None


def moment_of(fields: Fields, name: str, place: Place, repairs: list[Finding], subject: str) -> datetime | None:
    value = fields.get(name)
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            # The old store wrote utcnow(), without an offset.
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        reason = f"there is no {name}" if value is None else f"{name} is {_kind(value)}, not a date: left out"
    except (ValueError, OverflowError):
        reason = f"{name} is no date that can be read: left out"
    repairs.append(Finding("repair", reason, place, subject))
    return None


def _not_text(fields: Fields, name: str) -> str:
    if name not in fields:
        return f"the field {name!r} is missing"
    return f"the field {name!r} is {_kind(fields[name])}, not a text"


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
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
