"""The API where ``UNIQUE_ORGANIZATION_NAMES`` is false: nobody learns from a refused name who is a customer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from core.db.database import Database
from tests.support.api_client import Api


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url, unique_names=False)
    yield opened
    opened.close()


def test_a_name_of_another_organization_is_given_to_a_stranger_too(api: Api) -> None:
    first = api.post("/api/organizations", {"name": "Acme"}, api.as_("u1"))
    second = api.post("/api/organizations", {"name": " ACME "}, api.as_("u2"))
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json() | {"org_id": ""} == second.json() | {"org_id": ""}
    other = api.organization(u3="owner")
    assert api.send("PATCH", f"/api/organizations/{other}", api.as_("u3"), {"name": "acme"}).status_code == 200
    names = [
        each["name"] for each in api.get("/api/organizations", api.as_service(), search="acme").json()["organizations"]
    ]
    assert names == ["Acme", "ACME", "acme"]
