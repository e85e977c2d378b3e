"""Compares both accounts with what they were before: what changed, what got our metadata, and what is new.

Both states are what ``SandboxClient.state`` returns.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from sandbox.http import JsonDocument

# Where the objects of a state are, with the name of their id.
OBJECT_PLACES: Final[Mapping[str, tuple[tuple[str, ...], str]]] = {
    "customers in Stripe": (("stripe", "customers"), "id"),
    "subscriptions in Stripe": (("stripe", "subscriptions"), "id"),
    "products in Stripe": (("stripe", "products"), "id"),
    "prices in Stripe": (("stripe", "prices"), "id"),
    "invoices in Stripe": (("invoices",), "id"),
    "credit notes in Stripe": (("credit_notes",), "id"),
    "customers in Lago": (("lago", "customers"), "lago_id"),
    "subscriptions in Lago": (("lago", "subscriptions"), "lago_id"),
    "plans in Lago": (("lago", "plans"), "lago_id"),
}


def changed_objects(before: JsonDocument, after: JsonDocument, *, except_metadata: str | None = None) -> Iterator[str]:
    """A sentence for each object that was there before and is not as it was. New objects are no change.

    ``except_metadata``: the prefix of metadata keys that do not count.
    """
    for object_type, (place, key) in OBJECT_PLACES.items():
        now = {each[key]: each for each in _at(after, place)}
        for then in _at(before, place):
            found = now.get(then[key])
            if found is None:
                yield f"{object_type}: {then[key]} is gone"
            elif (was := _without(then, except_metadata)) != (is_now := _without(found, except_metadata)):
                yield f"{object_type}: {then[key]}: {_difference(was, is_now)}"


def objects_with_new_metadata(before: JsonDocument, after: JsonDocument, prefix: str) -> dict[str, int]:
    """How many objects that were there before have metadata with this prefix that they had not, by kind."""
    counts: dict[str, int] = {}
    for object_type, (place, key) in OBJECT_PLACES.items():
        then = {each[key]: _with_prefix(each, prefix) for each in _at(before, place)}
        count = sum(each[key] in then and then[each[key]] != _with_prefix(each, prefix) for each in _at(after, place))
        if count:
            counts[object_type] = count
    return counts


def new_objects(before: JsonDocument, after: JsonDocument, object_type: str) -> list[JsonDocument]:
    """``object_type``: a key of ``OBJECT_PLACES``."""
    place, key = OBJECT_PLACES[object_type]
    known = {each[key] for each in _at(before, place)}
    return [each for each in _at(after, place) if each[key] not in known]


def _at(state: JsonDocument, place: tuple[str, ...]) -> list[JsonDocument]:
    found: Any = state
    for name in place:
        found = found[name]
    return list(found)


def _metadata(document: JsonDocument) -> dict[str, str]:
    """Of Stripe; Lago's is a list, which billing-sync does not write."""
    metadata = document.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def _with_prefix(document: JsonDocument, prefix: str) -> dict[str, str]:
    return {name: value for name, value in _metadata(document).items() if name.startswith(prefix)}


def _without(document: JsonDocument, prefix: str | None) -> JsonDocument:
    if prefix is None or not _metadata(document):
        return document
    rest = {name: value for name, value in _metadata(document).items() if not name.startswith(prefix)}
    return {**document, "metadata": rest}


def _difference(then: JsonDocument, now: JsonDocument) -> str:
    return ", ".join(f"{name}: {then.get(name)} -> {now[name]}" for name in now if then.get(name) != now[name])
