"""What the database keeps under names of its own: no rename in the code may change it without a migration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import get_args

import pytest
from pydantic import TypeAdapter

from core.adoption.row import AdoptionRow, AdoptionSide
from core.compare import findings
from core.compare.desired_state import customer_fingerprint
from core.drift import report_store
from core.ports import errors
from core.ports.errors import ErrorKind, ProviderError
from core.ports.inventory import InventoryCustomer, InventoryDiscount, InventoryItem, InventorySubscription
from core.ports.observed import ObservedCustomer, ObservedSubscription
from core.ports.provider import Intent
from core.ports.spec import CustomerSpec
from core.reconcile import attempt, observation

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)


def leaves(kind: type[ProviderError]) -> Iterator[type[ProviderError]]:
    below = kind.__subclasses__()
    if not below:
        yield kind
    for each in below:
        yield from leaves(each)


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("UnavailableError", "unavailable"),
        ("ThrottledError", "throttled"),
        ("ObjectThrottledError", "throttled"),
        ("OutcomeUnknownError", "outcome_unknown"),
        ("MisconfiguredError", "misconfigured"),
        ("RejectedError", "rejected"),
        ("AmbiguousError", "ambiguous"),
        ("UnexpectedError", "unexpected"),
    ],
)
def test_error_kind_is_stored_under_a_name_of_its_own(name: str, stored: str) -> None:
    assert getattr(errors, name).kind == stored


def test_every_error_of_a_provider_has_a_kind() -> None:
    found = {each.__name__: getattr(each, "kind", None) for each in leaves(ProviderError)}
    assert set(found.values()) <= set(get_args(ErrorKind)), found


@pytest.mark.parametrize(
    ("spec", "stored"),
    [
        (
            CustomerSpec(org_id="org_1", name="Acme"),
            "aa2a27a37b46aaf94798db333ca2adac372809ed4548df46a009cc93ff125a81",
        ),
        (
            CustomerSpec(
                org_id="org_1",
                name="Ächme",
                email="a@b.test",
                currency="EUR",
                payer_id="cus_1",
                charged_by_other_provider=True,
            ),
            "48505fbebe1cc06bf7212fdc103f958da6d1e1fd258f3565b10f85f6babd4151",
        ),
    ],
)
def test_customer_fingerprint_is_the_one_that_links_have_stored(spec: CustomerSpec, stored: str) -> None:
    assert customer_fingerprint(spec) == stored


def test_every_field_of_a_customer_is_in_its_fingerprint() -> None:
    plain = CustomerSpec(org_id="org_1", name="Acme")
    others = {
        "org_id": "org_2",
        "name": "Beta",
        "email": "a@b.test",
        "currency": "EUR",
        "payer_id": "cus_1",
        "charged_by_other_provider": True,
    }
    # The plan's currency is compared with what the provider has, and is never written. That it gets no payer is in
    # ``payer_id``. External ids are those that the customer has had from the beginning. Marks go with other fields.
    not_written = {"plan_currency", "without_payer", "external_ids", "writes_marks"}
    assert asdict(plain).keys() - not_written == others.keys()
    assert len(
        {customer_fingerprint(CustomerSpec(**{**asdict(plain), field: value})) for field, value in others.items()}
    ) == len(others)


def test_intent_is_stored_under_these_keys() -> None:
    stored = {
        "operation": "create_customer",
        "generation": 2,
        "key": "billing-sync:create_customer:org_1:2",
        "body": {"name": "Acme"},
        "first_sent_at": "2026-11-28T12:00:00+00:00",
        "last_sent_at": "2026-11-28T12:00:00+00:00",
    }
    intent = Intent(
        operation="create_customer",
        generation=2,
        idempotency_key="billing-sync:create_customer:org_1:2",
        body={"name": "Acme"},
        first_sent_at=NOON,
        last_sent_at=NOON,
    )
    assert attempt.intent_from_json(stored) == intent
    assert attempt.stored(intent) == stored


def test_drift_counts_are_stored_under_these_keys() -> None:
    assert asdict(report_store.DriftCounts(kinds={"missing": 1}, excluded_providers=["lago"])) == {
        "compared": 0,
        "in_flux": 0,
        "parked_or_on_hold": 0,
        "drifted": 0,
        "repairable": 0,
        "kinds": {"missing": 1},
        "excluded_providers": ["lago"],
    }


def test_drift_finding_is_stored_under_these_keys() -> None:
    finding = findings.Finding(
        kind="renamed",
        provider="stripe",
        object_id="cus_1",
        field="name",
        ours="Acme",
        theirs="Acme Ltd",
        repairable=True,
        advice="",
        our_write=findings.OurWrite(actor="user_1", source="api", at=NOON),
        their_write=findings.TheirWrite(by="not us", at=NOON, evidence="evt_1"),
    )
    drift = findings.DriftItem(
        org_id="org_1",
        name="Acme",
        row_versions="1",
        inspected_customer_ids={"stripe": ("cus_1",)},
        findings=(finding,),
        repairs=(findings.RepairStep(provider="stripe", customer=True, subscription=False, calls=("POST /x",)),),
    )
    stored = {
        "org_id": "org_1",
        "name": "Acme",
        "row_versions": "1",
        "inspected_customer_ids": {"stripe": ["cus_1"]},
        "findings": [
            {
                "kind": "renamed",
                "provider": "stripe",
                "object_id": "cus_1",
                "field": "name",
                "ours": "Acme",
                "theirs": "Acme Ltd",
                "repairable": True,
                "advice": "",
                "is_on_hold": False,
                "our_write": {"actor": "user_1", "source": "api", "at": "2026-11-28T12:00:00Z"},
                "their_write": {"by": "not us", "at": "2026-11-28T12:00:00Z", "evidence": "evt_1"},
            }
        ],
        "repairs": [{"provider": "stripe", "customer": True, "subscription": False, "calls": ["POST /x"]}],
    }
    assert findings.to_json(drift) == stored
    assert findings.from_json(stored) == drift


def test_listed_objects_are_stored_under_these_keys() -> None:
    customer = TypeAdapter(ObservedCustomer).dump_python(ObservedCustomer(id="cus_1"), mode="json")
    subscription = TypeAdapter(ObservedSubscription).dump_python(
        ObservedSubscription(id="sub_1", customer_id="cus_1"), mode="json"
    )
    assert set(customer) == {
        "id",
        "org_id",
        "former_org_id",
        "database_id",
        "name",
        "email",
        "currency",
        "payer_id",
        "deleted",
        "has_unpaid_invoice",
        "credit",
        "changed_at",
    }
    assert set(subscription) == {
        "id",
        "customer_id",
        "org_id",
        "former_org_id",
        "plan_code",
        "price_id",
        "next_plan_code",
        "started",
        "arrangement",
        "paid_cents",
        "is_paid_manually",
        "remark",
        "changed_at",
    }


def test_what_a_discovery_listed_is_stored_under_these_keys() -> None:
    customer = TypeAdapter(InventoryCustomer).dump_python(InventoryCustomer(id="cus_1"), mode="json")
    subscription = TypeAdapter(InventorySubscription).dump_python(
        InventorySubscription(
            id="sub_1",
            customer_id="cus_1",
            items=(InventoryItem(price_id="price_1", code=None, amount=1, currency="USD", interval="month"),),
        ),
        mode="json",
    )
    discount = TypeAdapter(InventoryDiscount).dump_python(InventoryDiscount(id="d", customer_id="c", text="t"))
    assert " ".join(customer) == (
        "id external_id org_id database_id name email currency payer_id other_payer has_payment_method named_org_ids "
        "discounts is_addressable deleted"
    )
    assert " ".join(subscription) == (
        "id customer_id external_id org_id database_id status items next_code arrangement trial_ends_at next_at "
        "discounts is_paid_manually has_payment_method is_addressable created_at"
    )
    assert " ".join(subscription["items"][0]) == (
        "price_id code amount currency interval interval_count quantity sold_price_id bills_usage unusual"
    )
    assert " ".join(discount) == "id customer_id text"


def test_a_proposed_row_is_stored_and_written_under_these_keys() -> None:
    row = AdoptionRow(
        org_id=None,
        sides={"stripe": AdoptionSide(customer_id="cus_1")},
        matched_by=None,
        plan_tier=None,
        difference=None,
        currency=None,
        name_source="stripe",
        email_source="stripe",
        action="skip",
        reason="",
    )
    stored = TypeAdapter(AdoptionRow).dump_python(row, mode="json")
    assert " ".join(stored) == (
        "org_id sides matched_by plan_tier difference currency name_source email_source our_name our_email action "
        "reason suggestion proposed_org_id"
    )
    assert " ".join(stored["sides"]["stripe"]) == (
        "customer_id external_customer_id subscription_id external_subscription_id name email price amount currency "
        "interval quantity coupon trial_ends_at planned next_at has_payment_method payer_id"
    )


def test_an_observation_is_stored_under_these_keys() -> None:
    stored = {
        "version": 3,
        "is_paid": True,
        "steps": [
            {
                "kind": "schedule_plan",
                "object_id": "sub_1",
                "fields": [],
                "before": "pro",
                "after": "starter",
                "price_before": {"amount": 4900, "currency": "USD", "interval": "monthly"},
                "price_after": {"amount": None, "currency": "USD", "interval": None},
                "at_period_end": True,
                "effective_at": "2026-11-28T12:00:00+00:00",
                "is_repeat": False,
            },
        ],
        "problem": {"kind": "rejected", "code": None, "message": "no"},
    }
    read = observation.from_json(stored)
    assert read is not None
    assert observation.to_json(read) == stored
