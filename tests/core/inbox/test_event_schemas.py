"""The published JSON Schemas say what the models check."""

from __future__ import annotations

import json

import pytest
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError

from core.common.json_types import Json
from core.events.event_types import CHANGE_TYPES
from core.inbox.event_schemas import InvalidEventError, parse
from docs.schemas.generate import FOLDER, documents

GOOD: dict[str, dict[str, Json]] = {
    "organization.created": {"name": "Acme", "billing_email": "a@acme.test", "currency": "EUR", "owner_user_id": "u"},
    "organization.renamed": {"name": "Acme"},
    "organization.plan_changed": {"plan_tier": "starter"},
    "organization.status_changed": {"status": "suspended"},
    "organization.billing_details_changed": {"billing_email": None, "currency": "USD"},
    "membership.added": {"user_id": "u"},
    "membership.removed": {"user_id": "u"},
    "membership.role_changed": {"user_id": "u", "role": "owner"},
}
BAD: list[tuple[str, dict[str, Json]]] = [
    ("organization.created", {}),
    ("organization.created", {"name": "", "plan_tier": "starter"}),
    ("organization.created", {"name": "Acme", "currency": "usd"}),
    ("organization.created", {"name": "Acme", "billing_email": "nobody"}),
    ("organization.renamed", {"name": "x" * 201}),
    ("organization.plan_changed", {"plan_tier": 3}),
    ("organization.status_changed", {"status": "gone"}),
    ("organization.billing_details_changed", {"email": "a@acme.test"}),
    ("membership.added", {"user_id": "u", "role": "king"}),
    ("membership.removed", {}),
    ("membership.role_changed", {"user_id": "u"}),
]
ENVELOPE: dict[str, Json] = {
    "specversion": "1.0",
    "id": "1",
    "source": "/signup",
    "type": "organization.renamed",
    "subject": "org_1",
    "time": "2026-11-23T12:00:00Z",
    "data": {"name": "Acme"},
}
BAD_IN_ENVELOPE: list[dict[str, Json]] = [
    {"specversion": "0.3"},
    {"id": ""},
    {"source": None},
    {"type": "organization.sold"},
    {"subject": "acme"},
    {"datacontenttype": "text/xml"},
    {"data": "name=Acme"},
]


def _schema(name: str) -> Draft202012Validator:
    schema = json.loads((FOLDER / f"{name}.json").read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, format_checker=FormatChecker())


def test_every_published_schema_is_the_one_the_models_give() -> None:
    published = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    assert published == documents(), "run `python -m docs.schemas.generate`"


def test_there_is_one_for_the_envelope_and_for_every_type() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == {"envelope", *CHANGE_TYPES}


@pytest.mark.parametrize("event_type", CHANGE_TYPES)
def test_what_is_taken_is_what_the_schema_allows(event_type: str) -> None:
    message = ENVELOPE | {"type": event_type, "data": GOOD[event_type]}
    _schema("envelope").validate(message)
    _schema(event_type).validate(GOOD[event_type])
    assert parse(message)[1] == event_type


@pytest.mark.parametrize(("event_type", "data"), BAD)
def test_what_is_refused_is_what_the_schema_forbids(event_type: str, data: dict[str, Json]) -> None:
    with pytest.raises(ValidationError):
        _schema(event_type).validate(data)
    with pytest.raises(InvalidEventError, match=r"^data\."):
        parse(ENVELOPE | {"type": event_type, "data": data})


@pytest.mark.parametrize("wrong", BAD_IN_ENVELOPE, ids=lambda wrong: next(iter(wrong)))
def test_the_envelopes_schema_forbids_what_is_refused(wrong: dict[str, Json]) -> None:
    with pytest.raises(ValidationError):
        _schema("envelope").validate(ENVELOPE | wrong)
    with pytest.raises(InvalidEventError, match=f"^{next(iter(wrong))}"):
        parse(ENVELOPE | wrong)


def test_attributes_that_we_do_not_know_are_allowed_around_the_data() -> None:
    message = ENVELOPE | {"traceparent": "00-1-2-01", "dataschema": "https://signup.test/1"}
    _schema("envelope").validate(message)
    assert parse(message)[0].id == "1"
