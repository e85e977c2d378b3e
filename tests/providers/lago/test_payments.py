"""What counts as unpaid in Lago: the finalized invoices of our own customer, whatever else a version of Lago lists."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from core.catalog.plans import EndingPolicy
from core.common.json_types import Json
from core.ports.observed import ObservedCustomer, ObservedPayment, ObservedState
from providers.lago.provider import LagoProvider
from tests.support.scripted_lago import NO_ID, Reply, ScriptedLago

ENDING = EndingPolicy(lago_invoice="generate", lago_credit_note="credit", stripe_invoice_now=True, stripe_prorate=True)
OURS = ObservedState(customers=(ObservedCustomer(id=NO_ID, org_id="org_1"),))
FAILED: dict[str, Json] = {
    "lago_id": "i-1",
    "status": "finalized",
    "payment_status": "failed",
    "customer": {"lago_id": NO_ID},
}
DISPUTED: dict[str, Json] = {**FAILED, "payment_status": "succeeded", "payment_dispute_lost_at": "2026-11-01T00:00:00Z"}


@pytest.fixture
def lago() -> Iterator[ScriptedLago]:
    script = ScriptedLago()
    yield script
    script.close()


def invoices(*rows: Json) -> Reply:
    return Reply(200, {"invoices": list(rows), "meta": {"current_page": 1, "next_page": None}})


def payment(lago: ScriptedLago, unpaid: Reply, disputed: Reply) -> ObservedPayment:
    provider = LagoProvider(lago.url, "key", payment_provider_code="stripe_main", ending=ENDING)
    lago.respond_with(unpaid, disputed)
    try:
        return provider.reader.read_payment("org_1", OURS, is_charging=True)
    finally:
        provider.close()


def test_a_failed_invoice_and_a_lost_dispute_of_our_customer_count(lago: ScriptedLago) -> None:
    found = payment(lago, invoices(FAILED), invoices(DISPUTED))
    assert found.failed
    assert found.dispute_lost_at is not None


OTHERS: dict[str, dict[str, Json]] = {
    "of a deleted customer that had our external id (B18)": {"customer": {"lago_id": "another"}},
    "voided, by a version that ignores the filter (B23)": {"status": "voided"},
}


@pytest.mark.parametrize("other", OTHERS)
def test_other_invoices_are_not_owed_by_our_customer(lago: ScriptedLago, other: str) -> None:
    changed = OTHERS[other]
    found = payment(lago, invoices({**FAILED, **changed}), invoices({**DISPUTED, **changed}))
    assert not found.failed
    assert found.dispute_lost_at is None
