"""Shapes of answers: what a document's schema says of one JSON value, by types, required fields, enums and null.

A named schema is compiled to a function at its first use, so a check takes microseconds and may run on every answer. A
field that the document does not name is a fault too: a misspelled optional field would otherwise never be noticed.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from tests.contract.documents import Json, Object, array, obj
from tests.contract.schemas import fits_format

CHOSEN_BY_TESTS = "uuid"  # a format that is not checked: tests choose ids such as lago-7

KINDS: dict[type, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
    type(None): "null",
}


@dataclass(frozen=True, order=True)
class AnswerFault:
    """One fault of an answer. ``place`` begins with the nearest named schema: ``subscription.items.total_count``.

    The same object therefore has the same faults wherever it is nested: in a list, expanded, or in an event.
    """

    place: str
    problem: str

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}"


Check: TypeAlias = Callable[[Json, str, list[AnswerFault]], None]


class Shapes:
    """The compiled schemas of one document. Threads may share it: if two compile one schema, both results are equal."""

    def __init__(self, document: Object) -> None:
        self._document = document
        self._named: dict[str, Check] = {}

    def named(self, name: str) -> Check:
        """The check of ``#/components/schemas/{name}``."""
        if name not in self._named:
            self._named[name] = self.compiled(self._schema(name))
        return self._named[name]

    def has(self, name: str) -> bool:
        return name in obj(obj(self._document["components"])["schemas"])

    def compiled(self, given: Object) -> Check:
        """References stay lazy, since schemas contain each other."""
        if reference := given.get("$ref"):
            name = str(reference).rpartition("/")[2]
            return lambda value, _place, found: self.named(name)(value, name, found)
        schema = self._merged(given)
        if branches := schema.get("anyOf") or schema.get("oneOf"):
            inner = self._any_of([obj(branch) for branch in array(branches)])
        else:
            inner = self._by_kind(schema)
        return _or_null(inner) if schema.get("nullable") is True else inner

    def _schema(self, name: str) -> Object:
        return obj(obj(obj(self._document["components"])["schemas"])[name])

    def _merged(self, given: Object) -> Object:
        """The parts of an ``allOf`` as one schema, since an unknown field is one that no part names."""
        parts = [self._resolved(obj(part)) for part in array(given.get("allOf", []))]
        schema = {name: value for name, value in given.items() if name != "allOf"}
        for part in parts:
            properties = {**obj(part.get("properties", {})), **obj(schema.get("properties", {}))}
            required = [*array(part.get("required", [])), *array(schema.get("required", []))]
            schema = {**part, **schema, "properties": properties, "required": required}
        return schema

    def _resolved(self, given: Object) -> Object:
        if reference := given.get("$ref"):
            return self._merged(self._schema(str(reference).rpartition("/")[2]))
        return self._merged(given)

    def _any_of(self, branches: list[Object]) -> Check:
        """Only the branches that can be meant are tried; of several, the one with the fewest faults is meant."""
        candidates = [
            (self.compiled(branch), _kinds(whole := self._resolved(branch)), _tags(whole)) for branch in branches
        ]
        expected = " or ".join(sorted({kind for _, kinds, _ in candidates for kind in kinds}))

        def check(value: Json, place: str, found: list[AnswerFault]) -> None:
            fewest: list[AnswerFault] | None = None
            tag = value.get("object") if isinstance(value, dict) else None
            for branch, kinds, tags in candidates:
                if not _is_kind(value, kinds) or (tags and tag not in tags):
                    continue
                faults: list[AnswerFault] = []
                branch(value, place, faults)
                if not faults:
                    return
                fewest = faults if fewest is None or len(faults) < len(fewest) else fewest
            found.extend([_wrong_kind(value, place, expected)] if fewest is None else fewest)

        return check

    def _by_kind(self, schema: Object) -> Check:
        kinds = _kinds(schema)
        expected = " or ".join(sorted(kinds))
        inner = {"object": self._of_object(schema), "array": self._of_array(schema), "string": _of_string(schema)}
        allowed = schema.get("enum")

        def check(value: Json, place: str, found: list[AnswerFault]) -> None:
            if not _is_kind(value, kinds):
                found.append(_wrong_kind(value, place, expected))
            elif allowed is not None and value not in array(allowed) and value is not None:
                found.append(AnswerFault(place, f"{value!r} is not in the enum"))
            elif (by_kind := inner.get(KINDS[type(value)])) is not None:
                by_kind(value, place, found)

        return check

    def _of_object(self, schema: Object) -> Check | None:
        fields = {name: self.compiled(obj(each)) for name, each in obj(schema.get("properties", {})).items()}
        required = [str(name) for name in array(schema.get("required", []))]
        rest = schema.get("additionalProperties")
        others = self.compiled(rest) if isinstance(rest, dict) and rest else None
        is_closed = bool(fields) and rest is None
        if not (fields or others):
            return None

        def check(value: Json, place: str, found: list[AnswerFault]) -> None:
            fields_of_value = obj(value)
            for name, each in fields_of_value.items():
                if (inner := fields.get(name)) is not None:
                    inner(each, f"{place}.{name}", found)
                elif others is not None:
                    others(each, f"{place}.*", found)
                elif is_closed:
                    found.append(AnswerFault(f"{place}.{name}", "not in the document"))
            missing = [name for name in required if name not in fields_of_value]
            found.extend(AnswerFault(f"{place}.{name}", "missing") for name in missing)

        return check

    def _of_array(self, schema: Object) -> Check | None:
        items = schema.get("items")
        if not isinstance(items, dict):
            return None
        each_item = self.compiled(items)

        def check(value: Json, place: str, found: list[AnswerFault]) -> None:
            for each in array(value):
                each_item(each, f"{place}[]", found)

        return check


def _of_string(schema: Object) -> Check | None:
    name, pattern = schema.get("format"), schema.get("pattern")
    if name == CHOSEN_BY_TESTS:
        name = None
    longest = schema.get("maxLength")
    expression = re.compile(pattern) if isinstance(pattern, str) else None
    if name is None and expression is None and not isinstance(longest, int):
        return None

    def check(value: Json, place: str, found: list[AnswerFault]) -> None:
        text = str(value)
        if name is not None and not fits_format(text, str(name)):
            found.append(AnswerFault(place, f"not a {name}"))
        if expression is not None and not expression.search(text):
            found.append(AnswerFault(place, f"does not match {expression.pattern}"))
        if isinstance(longest, int) and len(text) > longest:
            found.append(AnswerFault(place, f"longer than {longest}"))

    return check


def _or_null(inner: Check) -> Check:
    def check(value: Json, place: str, found: list[AnswerFault]) -> None:
        if value is not None:
            inner(value, place, found)

    return check


def _kinds(schema: Object) -> frozenset[str]:
    """The JSON types that the schema allows; none means any."""
    names = schema.get("type")
    kinds = {str(name) for name in (names if isinstance(names, list) else [names]) if name is not None}
    if not kinds and "properties" in schema:
        kinds = {"object"}
    return frozenset(kinds | {"null"} if kinds and schema.get("nullable") is True else kinds)


def _tags(schema: Object) -> frozenset[Json]:
    """The names that Stripe gives this object in its field ``object``."""
    tag = obj(schema.get("properties", {})).get("object")
    return frozenset(map(str, array(tag["enum"]))) if isinstance(tag, dict) and "enum" in tag else frozenset()


def _is_kind(value: Json, kinds: frozenset[str]) -> bool:
    kind = KINDS[type(value)]
    return not kinds or kind in kinds or (kind == "integer" and "number" in kinds)


def _wrong_kind(value: Json, place: str, expected: str) -> AnswerFault:
    kind = KINDS[type(value)]
    return AnswerFault(place, "null" if kind == "null" else f"{kind} instead of {expected}")
