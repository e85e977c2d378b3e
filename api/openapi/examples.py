"""Examples for the OpenAPI document: one for each body, assembled from those of its fields, and one for each problem.

An optional field without an example is left out. A test checks every example against its schema.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from api.problems import MAYBE_CHANGED_DETAIL, PROBLEM_MEDIA_TYPE, PROBLEM_TYPE_PREFIX
from core.common import runbook

JsonDocument = dict[str, Any]

_EXAMPLE_REQUEST_ID: Final = "0c9c8f5e6a4b4f0f8f6f0a1b2c3d4e5f"
_PROBLEM_EXAMPLES: Final[dict[int, tuple[str, str, list[JsonDocument]]]] = {
    400: ("sign-in-refused", "This browser did not start this sign-in. Start again at /auth/login.", []),
    401: ("unauthorized", "The access token was rejected: it has expired. Sign in again.", []),
    403: ("forbidden", "This requires the role billing_admin or owner in this organization.", []),
    404: ("not-found", "There is no such organization, or you are not a member of it. Check its id.", []),
    408: ("too-slow", "The body did not arrive within 20 s.", []),
    409: (
        "name-taken",
        "Organization 'Acme' already exists",
        [{"field": "name", "detail": "Organization 'Acme' already exists"}],
    ),
    413: ("too-large", "The body may have at most 1048576 bytes.", []),
    415: ("unsupported-media-type", "Send application/json as Content-Type.", []),
    422: (
        "invalid-request",
        "body.name: String should have at least 1 character",
        [{"field": "body.name", "detail": "String should have at least 1 character"}],
    ),
    429: (
        "too-many-requests",
        "Rate limit exceeded. Retry after the number of seconds in Retry-After. No change was made.",
        [],
    ),
    503: ("unavailable", MAYBE_CHANGED_DETAIL, []),
}
_EXAMPLES_BY_FORMAT: Final = {
    "date-time": "2026-11-23T12:00:00Z",
    "uri": "https://acme.example",
    "email": "ann@acme.example",
}


def add_examples(document: JsonDocument) -> None:
    """Add an example wherever the document has none."""
    schemas = document["components"]["schemas"]
    for methods in document["paths"].values():
        for operation in methods.values():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                if not {"example", "examples"} & set(content):
                    content["example"] = _example_value(content["schema"], schemas)
            _add_problem_examples(operation["responses"])


def _add_problem_examples(responses: JsonDocument) -> None:
    for status, response in responses.items():
        content = response.get("content", {}).get(PROBLEM_MEDIA_TYPE)
        if content is not None and int(status) in _PROBLEM_EXAMPLES:
            response["content"] = {PROBLEM_MEDIA_TYPE: {**content, "example": _problem_example(int(status))}}


def _problem_example(status: int) -> JsonDocument:
    kind, detail, errors = _PROBLEM_EXAMPLES[status]
    return {
        "type": f"{PROBLEM_TYPE_PREFIX}{kind}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "help": runbook.problem_entry(kind),
        "request_id": _EXAMPLE_REQUEST_ID,
        "errors": errors,
    }


def _example_value(schema: JsonDocument, schemas: JsonDocument) -> Any:  # noqa: ANN401 - any JSON
    if "$ref" in schema:
        return _example_value(schemas[schema["$ref"].rsplit("/", 1)[1]], schemas)
    if schema.get("examples"):
        return schema["examples"][0]
    if "const" in schema or "enum" in schema:
        return schema.get("const") or schema.get("default") or schema["enum"][0]
    for name in ("anyOf", "oneOf", "allOf"):
        if name in schema:
            return _example_value(schema[name][0], schemas)
    return _example_of_type(schema, schemas)


def _example_of_type(schema: JsonDocument, schemas: JsonDocument) -> Any:  # noqa: ANN401 - any JSON
    match schema.get("type"):
        case "object":
            required = schema.get("required", [])
            properties = schema.get("properties", {}).items()
            return {
                name: _example_value(property_schema, schemas)
                for name, property_schema in properties
                if name in required or _has_example(property_schema, schemas)
            }
        case "array":
            return [_example_value(schema["items"], schemas)]
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return schema.get("default", True)
    return _EXAMPLES_BY_FORMAT.get(schema.get("format", ""), schema.get("default"))


def _has_example(schema: JsonDocument, schemas: JsonDocument) -> bool:
    """Whether this field, or one of its alternatives, has an example or a list of values."""
    if "$ref" in schema:
        return _has_example(schemas[schema["$ref"].rsplit("/", 1)[1]], schemas)
    alternatives = [each for name in ("anyOf", "oneOf", "allOf") for each in schema.get(name, ())]
    return bool({"examples", "enum", "const"} & set(schema)) or any(
        _has_example(each, schemas) for each in alternatives
    )
