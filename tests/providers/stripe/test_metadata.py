"""Which metadata we take for ours: our prefix, or the keys of earlier versions where no merchant has such a pair."""

from __future__ import annotations

import pytest

from core.ports.spec import CustomerSpec, LastKnown
from providers.stripe.metadata import read_marks, to_metadata
from tests.support.in_memory_attempt import InMemoryAttempt
from tests.support.stripe_world import StripeWorld

SPEC = CustomerSpec(org_id="org_1", name="Acme")
MARKS = {"org_id": "org_1", "plan": "starter", "next_plan": "free"}


@pytest.mark.parametrize(
    ("metadata", "marks"),
    [
        ({}, {}),
        ({"org_id": "42", "seats": "3"}, {}),
        ({"plan": "gold"}, {}),
        (to_metadata(MARKS), MARKS),
        ({**MARKS, "team": "x"}, MARKS),
        ({"org_id": "42", "plan": "gold", **to_metadata(MARKS)}, MARKS),
    ],
    ids=["none", "the merchant's id", "the merchant's plan", "ours", "of an earlier version", "beside the merchant's"],
)
def test_the_merchants_own_keys_are_no_marks(metadata: dict[str, str], marks: dict[str, str]) -> None:
    assert read_marks(metadata) == marks


def test_a_merchants_own_org_id_is_not_refused_and_stays(world: StripeWorld) -> None:
    made = str(world.post("/v1/customers", {"name": "Acme", "metadata[org_id]": "42"})["id"])
    found = world.provider.ensure_customer(SPEC, LastKnown(customer_id=made), InMemoryAttempt())
    assert found.id == made
    (there,) = world.customers()
    assert there["metadata"] == {
        "org_id": "42",
        "billing_sync_org_id": "org_1",
        "billing_sync_database_id": "database_1",
    }
