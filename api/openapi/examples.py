"""Examples for the document: of each body, put together from those of its fields, and of each refusal.

A field that has none and whose form does not give one is left out; a test holds every example against its schema.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from api.problems import KINDS, MEDIA_TYPE

Document = dict[str, Any]

_REQUEST_ID: Final = "0c9c8f5e6a4b4f0f8f6f0a1b2c3d4e5f"
_PROBLEMS: Final[dict[int, tuple[str, str, list[Document]]]] = {
    400: ("sign-in-refused", "The sign-in was begun by another browser, or long ago. Begin again.", []),
    401: ("unauthorized", "The access token is refused: it has expired. Sign in again.", []),
    403: ("forbidden", "In this organization it is for billing_admin and owner alone.", []),
    404: ("not-found", "There is no such organization, or you are not in it: look at its id.", []),
    408: ("too-slow", "The body did not arrive within 20 s.", []),
    409: (
        "name-taken",
        "Organization 'Acme' already exists",
        [{"field": "name", "detail": "Organization 'Acme' already exists"}],
    ),
    413: ("too-large", "A body holds at most 1048576 bytes.", []),
    415: ("unsupported-media-type", "Send application/json as Content-Type.", []),
    422: (
        "invalid-request",
        "body.name: String should have at least 1 character",
        [{"field": "body.name", "detail": "String should have at least 1 character"}],
    ),
    429: (
        "too-many-requests",
        "You ask too often: wait as long as Retry-After says, then go on. Nothing was changed.",
        [],
    ),
    503: ("unavailable", "The database does not answer in time; nothing was changed. Try again.", []),
}
_BY_FORMAT: Final = {"date-time": "2026-11-23T12:00:00Z", "uri": "https://acme.example", "email": "ann@acme.example"}


def add(document: Document) -> None:
    """Where the document has none."""
    schemas = document["components"]["schemas"]
    for methods in document["paths"].values():
        for operation in methods.values():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                if not {"example", "examples"} & set(content):
                    content["example"] = _value(content["schema"], schemas)
            _refusals(operation["responses"])


def _refusals(responses: Document) -> None:
    for status, answer in responses.items():
        content = answer.get("content", {}).get(MEDIA_TYPE)
        if content is not None and int(status) in _PROBLEMS:
            answer["content"] = {MEDIA_TYPE: {**content, "example": _problem(int(status))}}


def _problem(status: int) -> Document:
    kind, detail, errors = _PROBLEMS[status]
    return {
        "type": f"{KINDS}{kind}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "request_id": _REQUEST_ID,
        "errors": errors,
    }


def _value(schema: Document, schemas: Document) -> Any:  # noqa: ANN401 - any JSON
    if "$ref" in schema:
        return _value(schemas[schema["$ref"].rsplit("/", 1)[1]], schemas)
    if schema.get("examples"):
        return schema["examples"][0]
    if "const" in schema or "enum" in schema:
        return schema.get("const") or schema.get("default") or schema["enum"][0]
    for name in ("anyOf", "oneOf", "allOf"):
        if name in schema:
            return _value(schema[name][0], schemas)
    return _of_type(schema, schemas)


def _of_type(schema: Document, schemas: Document) -> Any:  # noqa: ANN401 - any JSON
    match schema.get("type"):
        case "object":
            required = schema.get("required", [])
            properties = schema.get("properties", {}).items()
            return {
                name: _value(each, schemas) for name, each in properties if name in required or _tells(each, schemas)
            }
        case "array":
            return [_value(schema["items"], schemas)]
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return schema.get("default", True)
    return _BY_FORMAT.get(schema.get("format", ""), schema.get("default"))


def _tells(schema: Document, schemas: Document) -> bool:
    """Whether somebody gave this field, or what it may be, an example or a list of words."""
    if "$ref" in schema:
        return _tells(schemas[schema["$ref"].rsplit("/", 1)[1]], schemas)
    inner = [each for name in ("anyOf", "oneOf", "allOf") for each in schema.get(name, ())]
    return bool({"examples", "enum", "const"} & set(schema)) or any(_tells(each, schemas) for each in inner)
