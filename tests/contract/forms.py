"""Conversion of a form or query string to the JSON that its schema describes.

A form has only text, so the schema decides the type of each value. Text that does not fit is left as text, so that the
schema rejects it.
"""

import re
from typing import TypeAlias
from urllib.parse import parse_qsl

from tests.contract.documents import Json, Object, array, obj

Tree: TypeAlias = dict[str, "str | Tree"]

MOST_PAIRS = 5000  # five times as many as twenty subscription items with fifty metadata keys each
DEEPEST = 12  # steps; the documents need seven

_BRACKETED = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_NUMBER = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?")


class UnclearError(ValueError):
    """A name whose place is ambiguous, so that two servers may read it differently."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"'{name}' {problem}")


def pairs(form: str) -> list[tuple[str, str]]:
    """Decoded names and values in their order. Raises ``ValueError`` for broken UTF-8 and beyond MOST_PAIRS."""
    return parse_qsl(form, keep_blank_values=True, errors="strict", max_num_fields=MOST_PAIRS)


def bracketed(form: str) -> Tree:
    """``a[b][0][c]=v`` as ``{"a": {"b": {"0": {"c": "v"}}}}``; ``a[]=v`` appends. Raises ``UnclearError``."""
    root: Tree = {}
    for name, text in pairs(form):
        match = _BRACKETED.fullmatch(name)
        if match is None:
            raise UnclearError(name, "has unbalanced brackets")
        plant(root, name, [match[1], *match[2][1:-1].split("][")] if match[2] else [match[1]], text)
    return root


def plant(root: Tree, name: str, steps: list[str], text: str) -> None:
    """Set the text at the steps. Raises ``UnclearError`` if the place is taken or ambiguous."""
    branch = root
    if len(steps) > DEEPEST:
        raise UnclearError(name, "is nested too deep")
    for step in steps[:-1]:
        below = branch.setdefault(step, {})
        if not step or isinstance(below, str):
            raise UnclearError(name, "is inside a field that already has a value" if step else "needs an index")
        branch = below
    last = steps[-1] or str(len(branch))
    if last in branch:
        raise UnclearError(name, "is given twice")
    branch[last] = text


def typed(branch: str | Tree, schema: Object) -> Json:
    """The JSON value that the schema describes for the branch."""
    kinds = [obj(kind) for kind in array(schema["anyOf"])] if "anyOf" in schema else [schema]
    if isinstance(branch, str):
        return _scalar(branch, {name for kind in kinds for name in _type_names(kind)})
    for kind in kinds:
        if kind.get("type") == "array" and all(re.fullmatch("[0-9]{1,4}", step) for step in branch):
            items = obj(kind.get("items", {}))
            return [typed(branch[step], items) for step in sorted(branch, key=int)]
    shape = next((kind for kind in kinds if kind.get("type") == "object"), {})
    named, other = obj(shape.get("properties", {})), shape.get("additionalProperties")
    rest = other if isinstance(other, dict) else {}
    return {step: typed(below, obj(named.get(step, rest))) for step, below in branch.items()}


def _type_names(schema: Object) -> list[Json]:
    names = schema.get("type")
    return names if isinstance(names, list) else [names]


def _scalar(text: str, names: set[Json]) -> Json:
    if "integer" in names and _INTEGER.fullmatch(text):
        return int(text)
    if "number" in names and _NUMBER.fullmatch(text):
        return float(text)
    if "boolean" in names and text in {"true", "false"}:
        return text == "true"
    return text
