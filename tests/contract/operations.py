"""Operations of a document (a method on a path), found by a request's path and compiled once.

A ``Difference`` is a fact in which the server differs from its document. It has a reason, and it names a place that
must exist: if a newer document moves that place, the difference raises an error instead of doing nothing.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from jsonschema import Draft202012Validator

from tests.contract.documents import Json, Object, obj
from tests.contract.schemas import NOTHING, closed, compiled

Key: TypeAlias = tuple[str, str]  # method in capitals, path as in the document
Parts: TypeAlias = Object  # {"query": schema, "body": schema} of one operation


@dataclass(frozen=True)
class WireRequest:
    """One request as it was sent."""

    method: str
    path: str
    query: str
    body: bytes
    content_type: str

    @property
    def media_type(self) -> str:
        return self.content_type.partition(";")[0].strip().lower()


@dataclass(frozen=True)
class Difference:
    """One fact about a server that its document lacks.

    ``at`` is the path in the operation's parts to the place that becomes ``now``: ``("query", "properties", "limit")``.
    If it is empty, ``now`` has the parts of an operation that the document lacks.
    """

    method: str
    path: str
    at: tuple[str, ...]
    now: Json
    reason: str


@dataclass(frozen=True)
class DocumentedOperation:
    """``query`` and ``body`` are closed schemas; without a ``body``, the operation has none."""

    query: Object
    body: Object | None
    query_check: Draft202012Validator
    body_check: Draft202012Validator


class DocumentedPaths:
    """The paths of a document, found by a concrete path. Literal segments come first, as OpenAPI says."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._by_length: dict[int, list[Key]] = {}
        for key in sorted(keys, key=lambda key: key[1].count("{")):
            self._by_length.setdefault(key[1].count("/"), []).append(key)

    def find(self, method: str, path: str) -> Key | None:
        steps = path.split("/")
        for key in self._by_length.get(len(steps) - 1, []):
            if key[0] == method and all(map(_fits, key[1].split("/"), steps)):
                return key
        return None


class Operations:
    """The operations of one document with its overlay, each compiled at its first use.

    If two threads compile the same operation at once, both results are equal and one is stored.
    """

    def __init__(self, described: Mapping[Key, Parts], document: Object, overlay: Sequence[Difference]) -> None:
        self._overlay = overlay
        self._documented = frozenset(described)
        self._described = {**described, **{(one.method, one.path): obj(one.now) for one in overlay if not one.at}}
        self._document = document
        self._compiled: dict[Key, DocumentedOperation] = {}
        self._paths = DocumentedPaths(self._described)

    def find(self, method: str, path: str) -> DocumentedOperation | None:
        """The operation of a concrete path, or None if the document lacks it."""
        key = self._paths.find(method, path)
        return None if key is None else self._compiled.get(key) or self._compile(key)

    def superfluous(self) -> list[Difference]:
        """Differences that the document now contains. Raises ``KeyError`` for one whose place the document lacks."""
        return [one for one in self._overlay if self._says_nothing_new(one)]

    def compile_all(self) -> int:
        """Compile every operation now; return how many there are. Raises ``SchemaError`` for a broken schema."""
        for key in self._described:
            operation = self._compile(key)
            operation.query_check.check_schema(operation.query)
            operation.body_check.check_schema(operation.body or NOTHING)
        return len(self._described)

    def _says_nothing_new(self, one: Difference) -> bool:
        key = (one.method, one.path)
        if not one.at:
            return key in self._documented
        parts = self._parts(key)
        put(parts, one, self._document)
        return parts == self._parts(key)

    def _parts(self, key: Key) -> Parts:
        return {part: closed(schema, self._document) for part, schema in self._described[key].items()}

    def _compile(self, key: Key) -> DocumentedOperation:
        parts = self._parts(key)
        for one in self._overlay:
            if one.at and (one.method, one.path) == key:
                put(parts, one, self._document)
        query, body = obj(parts["query"]), obj(parts["body"]) if "body" in parts else None
        operation = DocumentedOperation(query, body, compiled(query), compiled(body or NOTHING))
        self._compiled[key] = operation
        return operation


def put(parts: Parts, difference: Difference, document: Object) -> None:
    """Apply the difference to the parts. Raises ``KeyError`` if the document has no such place."""
    place: Json = parts
    for step in difference.at[:-1]:
        place = place[int(step)] if isinstance(place, list) else obj(place)[step]
    now = difference.now
    obj(place)[difference.at[-1]] = closed(now, document) if isinstance(now, dict) else copy.deepcopy(now)


def query_schema(parameters: Sequence[Object]) -> Object:
    """The query parameters as one object schema, so that unknown or missing ones are found like any other key."""
    listed = [one for one in parameters if one["in"] == "query"]
    return {
        "type": "object",
        "properties": {str(one["name"]): one["schema"] for one in listed},
        "required": [one["name"] for one in listed if one.get("required")],
    }


def _fits(described: str, given: str) -> bool:
    return described == given or (described.startswith("{") and given != "")
