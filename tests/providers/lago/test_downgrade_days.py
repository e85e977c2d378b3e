"""When a scheduled plan begins in Lago: at the end of the billing period, whatever day its answer names."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from core.catalog.plans import EndingPolicy
from core.common.json_types import Json
from core.ports.spec import LastKnown, SubscriptionSpec
from providers.lago.provider import LagoProvider
from tests.support.in_memory_attempt import InMemoryAttempt
from tests.support.scripted_lago import NO_ID, ScriptedLago, subscription

ENDING = EndingPolicy(lago_invoice="generate", lago_credit_note="credit", stripe_invoice_now=True, stripe_prorate=True)
SPEC = SubscriptionSpec(org_id="org_1", customer_id=NO_ID, plan_code="pro", next_plan_code="basic", next_plan_amount=0)
SCHEDULED: dict[str, Json] = {"plan_code": "pro", "next_plan_code": "basic", "plan_amount_cents": 4900}

CASES: dict[str, tuple[str, str | None, datetime]] = {
    "UTC": ("2026-12-01", "2026-11-30T23:59:59Z", datetime(2026, 12, 1, tzinfo=UTC)),
    "New York (B16)": ("2026-12-02", "2026-12-01T04:59:59Z", datetime(2026, 12, 1, 5, tzinfo=UTC)),
    "Tokyo (B16)": ("2026-12-01", "2026-11-30T14:59:59Z", datetime(2026, 11, 30, 15, tzinfo=UTC)),
    "yearly with monthly charges (B9)": ("2027-01-01", "2026-11-30T23:59:59Z", datetime(2026, 12, 1, tzinfo=UTC)),
    "no period": ("2026-12-01", None, datetime(2026, 12, 1, tzinfo=UTC)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_moment_is_the_end_of_the_billing_period(case: str) -> None:
    day, period_end, moment = CASES[case]
    script = ScriptedLago()
    provider = LagoProvider(script.url, "key", payment_provider_code=None, ending=ENDING)
    shown = subscription(**SCHEDULED, downgrade_plan_date=day, current_billing_period_ending_at=period_end)
    script.respond_with(shown, shown)
    try:
        known = LastKnown(customer_id=NO_ID, subscription_id=NO_ID, plan_code="pro", next_plan_code="basic")
        found = provider.ensure_subscription(SPEC, known, InMemoryAttempt())
    finally:
        provider.close()
        script.close()
    assert found.next_plan_at == moment
