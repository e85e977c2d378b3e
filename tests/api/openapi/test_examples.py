"""The document shows each body and each refusal by an example that is one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema.validators import Draft202012Validator

from tests.support.api_client import Api

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

Shown = tuple[str, dict[str, Any]]


def document(api: Api) -> dict[str, Any]:
    found: dict[str, Any] = api.get("/openapi.json").json()
    return found


def operations(found: dict[str, Any]) -> Iterator[Shown]:
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def bodies(found: dict[str, Any]) -> Iterator[Shown]:
    for name, operation in operations(found):
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            yield f"{name} {kind}", content


def examples(content: dict[str, Any]) -> list[Any]:
    several = [each["value"] for each in content.get("examples", {}).values()]
    return several or ([content["example"]] if "example" in content else [])


def faults(found: dict[str, Any], content: dict[str, Any], example: object) -> list[str]:
    schema = {**content["schema"], "components": found["components"]}
    return [error.message for error in Draft202012Validator(schema).iter_errors(example)]


def test_every_body_has_an_example_that_its_schema_takes(api: Api) -> None:
    found = document(api)
    shown = dict(bodies(found))
    assert len(shown) > 10
    assert [name for name, content in shown.items() if not examples(content)] == []
    wrong = {
        name: broken
        for name, content in shown.items()
        for example in examples(content)
        if (broken := faults(found, content, example))
    }
    assert wrong == {}
    assert shown["POST /api/organizations application/json"]["example"]["name"] == "Acme"


def test_every_refusal_has_an_example_of_its_own_status(api: Api) -> None:
    found = document(api)
    for name, operation in operations(found):
        for status, answer in operation["responses"].items():
            content = answer.get("content", {}).get("application/problem+json")
            if content is not None:
                assert examples(content)[0]["status"] == int(status), (name, status)
                assert faults(found, content, examples(content)[0]) == []
