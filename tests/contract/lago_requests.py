"""Check of requests to Lago: JSON bodies with every object closed, and query parameters with their exact names.

Lago responds 200 to an unknown key or filter and drops it, so a misspelled one looks like success (lago.md 3.1, 5.3).
This is where the check is most useful.
"""

import functools
import json
import re

from tests.contract.documents import Json, Object, array, lago_document, obj
from tests.contract.forms import Tree, pairs, plant, typed
from tests.contract.lago_overlay import OVERLAY
from tests.contract.operations import DocumentedOperation, Key, Operations, Parts, WireRequest, query_schema
from tests.contract.schemas import faults

BASE = "/api/v1"
JSON = "application/json"

_METHODS = ("get", "post", "put", "patch", "delete")
_NESTED = re.compile(r"(\w+)\[([^\[\]]+)\]")


def lago_violations(request: WireRequest) -> list[str]:
    """What the document and ``lago_overlay`` do not allow in the request."""
    operation = operations().find(request.method, request.path)
    if operation is None:
        return ["the document has no such operation"]
    return _query_violations(request, operation) + _body_violations(request, operation)


@functools.cache
def operations() -> Operations:
    document = lago_document()
    described: dict[Key, Parts] = {}
    for path, item in obj(document["paths"]).items():
        shared = array(obj(item).get("parameters", []))
        for method, operation in obj(item).items():
            if method in _METHODS:
                described[method.upper(), BASE + path] = _parts(obj(operation), shared, document)
    return Operations(described, document, OVERLAY)


def _parts(operation: Object, shared: list[Json], document: Object) -> Parts:
    parameters = [_parameter(obj(one), document) for one in [*shared, *array(operation.get("parameters") or [])]]
    parts: Parts = {"query": query_schema(parameters)}
    if "requestBody" in operation:
        parts["body"] = obj(obj(obj(operation["requestBody"])["content"])[JSON])["schema"]
    return parts


def _parameter(given: Object, document: Object) -> Object:
    if "$ref" in given:
        named = obj(obj(document["components"])["parameters"])
        return obj(named[str(given["$ref"]).rpartition("/")[2]])
    if str(given["name"]).endswith("[key]"):
        # The document writes "any key" as metadata[key].
        inside: Object = {"type": "object", "additionalProperties": given["schema"]}
        return {**given, "name": str(given["name"]).removesuffix("[key]"), "schema": inside}
    return given


def _query_violations(request: WireRequest, operation: DocumentedOperation) -> list[str]:
    try:
        tree = _tree(request.query)
    except ValueError as error:
        return [f"query: {error}"]
    return [f"query: {fault}" for fault in faults(operation.query_check, typed(tree, operation.query))]


def _tree(query: str) -> Tree:
    """Rails reads ``a[]`` as a list and ``a[b]`` as an object. ``a[0]`` is an object too, and no filter accepts it."""
    root: Tree = {}
    for name, text in pairs(query):
        if name.endswith("[]"):
            plant(root, name, [name, str(len(root.get(name, "")))], text)
        elif nested := _NESTED.fullmatch(name):
            plant(root, name, [nested[1], nested[2]], text)
        else:
            plant(root, name, [name], text)
    return root


def _body_violations(request: WireRequest, operation: DocumentedOperation) -> list[str]:
    if operation.body is None:
        return ["this operation has no body"] if request.body else []
    if request.media_type != JSON:
        return [f"the body must be {JSON}, not '{request.content_type}'"]
    try:
        value = json.loads(request.body, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return ["the body is not JSON"]
    return faults(operation.body_check, value)


def _refuse(constant: str) -> Json:
    raise ValueError(constant)
