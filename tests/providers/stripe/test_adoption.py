"""A subscription that we did not create is adopted only if it is the one that we would have created."""

from __future__ import annotations

import pytest

from core.ports.errors import ConflictError
from core.ports.spec import SubscriptionSpec
from providers.stripe.adoption import refuse_other_terms
from providers.stripe.responses import StripePrice, StripeSubscription

PRICE = {"id": "price_1", "currency": "usd", "unit_amount": 4900, "recurring": {"interval": "month"}}
ITEM = {"id": "si_1", "price": PRICE, "quantity": 1, "current_period_start": 1, "current_period_end": 2}
SUBSCRIPTION = {"id": "sub_1", "status": "active", "customer": "cus_1", "created": 1, "items": {"data": [ITEM]}}
SPEC = SubscriptionSpec(org_id="org_1", customer_id="cus_1", plan_code="professional")


def refuse(**changed: object) -> None:
    found = StripeSubscription.model_validate({**SUBSCRIPTION, **changed})
    refuse_other_terms(found, StripePrice.model_validate(PRICE), SPEC)


def test_the_subscription_that_we_would_have_created_is_adopted() -> None:
    refuse()
    refuse(status="past_due", metadata={"billing_sync_org_id": "org_1", "team": "x"})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"discounts": ["di_1"]}, "with a discount"),
        ({"items": {"data": [{**ITEM, "discounts": ["di_1"]}]}}, "with a discount"),
        ({"status": "trialing"}, "with a trial"),
        ({"cancel_at_period_end": True}, "with a planned end"),
        ({"cancel_at": 1800000000}, "with a planned end"),
        ({"pause_collection": {"behavior": "void"}}, "with paused collection"),
        ({"status": "paused"}, "with paused collection"),
        ({"schedule": "sub_sched_1"}, "with a schedule"),
        (
            {
                "metadata": {
                    "billing_sync_org_id": "org_1",
                    "billing_sync_plan": "professional",
                    "billing_sync_next_plan": "starter",
                }
            },
            "with a schedule",
        ),
        ({"items": {"data": [{**ITEM, "quantity": 2}]}}, "2 times 49.00 USD monthly"),
        ({"items": {"data": [ITEM, {**ITEM, "id": "si_2"}]}}, "and 49.00 USD"),
        ({"items": {"data": [ITEM], "has_more": True}}, "with more items"),
        ({"items": {"data": [{**ITEM, "price": {**PRICE, "id": "price_2"}}]}}, "price_2"),
        (
            {"items": {"data": [{**ITEM, "price": {**PRICE, "id": "price_2", "unit_amount": None}}]}},
            "no flat amount in USD",
        ),
    ],
)
def test_other_terms_are_a_conflict_that_names_them(changed: dict[str, object], words: str) -> None:
    with pytest.raises(ConflictError) as caught:
        refuse(**changed)
    assert words in caught.value.message
    assert "the plan 49.00 USD monthly (price_1)" in caught.value.message
