"""Where two providers answer the same story differently: in the fields of their objects, their types, and the statuses.

Values are never compared or shown: a report of an account may be given to others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from tests.foreign.forwarder import ForwardedRequest

_TYPES: Final[Mapping[type, str]] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "list",
    dict: "object",
    type(None): "null",
}
# Their keys are chosen by who writes them, or by the account.
_OPEN_OBJECTS: Final = frozenset({"metadata"})
MAX_DEPTH: Final = 12

Shapes = dict[str, set[str]]


@dataclass(frozen=True, order=True, kw_only=True)
class AccountDifference:
    """``place``: a field of an object, such as ``customer.email``, or an operation. ``sandbox`` and ``other``: what
    each has there."""

    place: str
    sandbox: str
    other: str


def differences(sandbox: Iterable[ForwardedRequest], other: Iterable[ForwardedRequest]) -> list[AccountDifference]:
    """Only objects and operations that both have met are compared."""
    sandbox, other = list(sandbox), list(other)
    return sorted({*_of_shapes(_shapes(sandbox), _shapes(other)), *_of_statuses(_statuses(sandbox), _statuses(other))})


def _of_shapes(ours: Shapes, theirs: Shapes) -> Iterator[AccountDifference]:
    shared = {_parent(place) for place in ours} & {_parent(place) for place in theirs}
    for place in sorted({*ours, *theirs}):
        if _parent(place) not in shared:
            continue
        here, there = ours.get(place, set()), theirs.get(place, set())
        if not here or not there or there - here:
            yield AccountDifference(place=place, sandbox=_words(here), other=_words(there))


def _of_statuses(ours: Shapes, theirs: Shapes) -> Iterator[AccountDifference]:
    for operation in sorted(ours.keys() & theirs.keys()):
        if ours[operation] != theirs[operation]:
            yield AccountDifference(place=operation, sandbox=_words(ours[operation]), other=_words(theirs[operation]))


def _words(found: set[str]) -> str:
    return " or ".join(sorted(found)) or "absent"


def _parent(place: str) -> str:
    return place.rpartition(".")[0]


def _statuses(requests: Iterable[ForwardedRequest]) -> Shapes:
    found: Shapes = defaultdict(set)
    for each in requests:
        found[each.operation].add(f"status {each.status}")
    return found


def _shapes(requests: Iterable[ForwardedRequest]) -> Shapes:
    found: Shapes = defaultdict(set)
    for each in requests:
        root = "error answer" if each.is_refused else ("Lago" if each.path.startswith("/api/") else "answer")
        _add(each.answer, root, found, depth=0)
    return found


def _add(value: object, place: str, found: Shapes, depth: int) -> None:
    """Stripe names the type of each object, so that it has one place however deep it is nested."""
    if isinstance(value, dict) and isinstance(value.get("object"), str):
        place = value["object"] if value["object"] != "list" else f"{place}[list]"
    if depth > MAX_DEPTH or not isinstance(value, dict | list):
        return
    if isinstance(value, list):
        for each in value:
            _add(each, f"{place}[]", found, depth + 1)
        return
    for key, part in value.items():
        found[f"{place}.{key}"].add(_TYPES[type(part)])
        if key not in _OPEN_OBJECTS:
            _add(part, f"{place}.{key}", found, depth + 1)
