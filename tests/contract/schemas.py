"""Schemas of a document, made stricter: what a schema does not name is rejected.

References are inlined, prose is dropped, and every object that lists its properties is closed at any depth. The
documents close at most the top level, but the servers drop or reject unknown keys at deeper levels too.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from datetime import date, datetime

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError

from tests.contract.documents import Json, Object, array, obj

NOTHING: Object = {"type": "object", "properties": {}, "additionalProperties": False}

_PROSE = {"$ref", "allOf", "default", "deprecated", "description", "example", "title"}

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_formats = FormatChecker(formats=())


def closed(schema: Json, document: Object) -> Object:
    """A copy of the schema that does not refer to the document and names everything that it allows."""
    given = obj(schema)
    merged: Object = {}
    if reference := given.get("$ref"):
        merged = closed(_referred(str(reference), document), document)
    for part in array(given.get("allOf", [])):
        merged = _both(merged, closed(part, document))
    own = {key: _inner(key, value, document) for key, value in given.items() if key not in _PROSE}
    if "oneOf" in own:
        # Lago means "any of these types": read literally, its oneOf of integer and number rejects every integer.
        own["anyOf"] = own.pop("oneOf")
    merged = _both(merged, own)
    if "properties" in merged:
        merged.setdefault("additionalProperties", False)
    return merged


def compiled(schema: Object) -> Draft202012Validator:
    """A validator. Store it, since building it is slower than using it. Threads may share it."""
    return Draft202012Validator(schema, format_checker=_formats)


def faults(validator: Draft202012Validator, value: Json) -> list[str]:
    """What the schema rejects in the value, one sentence each, in the order of the fields' names."""
    found = [reason for error in validator.iter_errors(value) for reason in _reasons(error)]
    return sorted(f"{_place(error)}{_sentence(error)}" for error in found)


def fits_format(text: str, name: str) -> bool:
    """Whether the text has the format; a format that is not checked here always fits."""
    return _formats.conforms(text, name)


def _inner(keyword: str, value: Json, document: Object) -> Json:
    match keyword, value:
        case "properties", dict():
            return {name: closed(schema, document) for name, schema in value.items()}
        case "items" | "additionalProperties" | "if" | "then" | "propertyNames", dict():
            return closed(value, document)
        case "anyOf" | "oneOf", list():
            return [closed(schema, document) for schema in value]
    return value


def _both(one: Object, other: Object) -> Object:
    """The combination of both schemas, as far as the documents need it; the later one wins if they differ."""
    result = {**one, **other}
    if "properties" in one and "properties" in other:
        result["properties"] = {**obj(one["properties"]), **obj(other["properties"])}
    if "required" in one and "required" in other:
        result["required"] = [*array(one["required"]), *array(other["required"])]
    return result


def _referred(reference: str, document: Object) -> Json:
    found: Json = document
    for step in reference.removeprefix("#/").split("/"):
        found = obj(found)[step]
    return found


def _reasons(error: ValidationError) -> Iterator[ValidationError]:
    """The errors behind "not valid under any of the given schemas", if only one of these can be meant."""
    branches: dict[object, list[ValidationError]] = {}
    for inner in error.context or ():
        branches.setdefault(inner.relative_schema_path[0], []).append(inner)
    meant = [inside for inside in branches.values() if not any(map(_is_another_kind, inside))]
    if len(meant) != 1:
        yield error
        return
    for inner in meant[0]:
        yield from _reasons(inner)


def _is_another_kind(error: ValidationError) -> bool:
    return error.validator == "type" and not error.relative_path


def _place(error: ValidationError) -> str:
    place = ""
    for step in error.absolute_path:
        place += f"[{step}]" if isinstance(step, int) else f".{step}" if place else step
    return f"{place}: " if place else ""


def _sentence(error: ValidationError) -> str:
    if error.validator != "additionalProperties":
        return error.message
    known = list(obj(error.schema.get("properties", {}))) if isinstance(error.schema, dict) else []
    return "; ".join(_unknown(name, known) for name in _names(error.instance) if name not in known)


def _names(value: object) -> list[str]:
    return [str(name) for name in value] if isinstance(value, dict) else []


def _unknown(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"'{name}' is not in the document" + (f", but '{near[0]}' is" if near else "")


@_formats.checks("date-time")
def _is_moment(value: object) -> bool:
    return not isinstance(value, str) or _parses_as_moment(value)


def _parses_as_moment(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None and "T" in text
    except ValueError:
        return False


@_formats.checks("date", raises=ValueError)
def _is_date(value: object) -> bool:
    return not isinstance(value, str) or bool(date.fromisoformat(value))


@_formats.checks("uuid")
def _is_uuid(value: object) -> bool:
    return not isinstance(value, str) or bool(_UUID.fullmatch(value))


@_formats.checks("email")
def _is_email_list(value: object) -> bool:
    """Lago accepts several, separated by commas (lago.md 3.1); Stripe's document never uses this format."""
    if not isinstance(value, str):
        return True
    return all(re.fullmatch(r"[^@\s]+@[^@\s]+", part.strip()) for part in value.split(","))


@_formats.checks("currency")
def _is_stripe_currency(value: object) -> bool:
    return not isinstance(value, str) or bool(re.fullmatch(r"[a-z]{3}", value))


@_formats.checks("decimal")
def _is_decimal(value: object) -> bool:
    return not isinstance(value, str) or bool(re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", value))
