"""What a plan of Lago has beside amount, currency and interval: what bills otherwise is named."""

from __future__ import annotations

import pytest

from core.catalog.plans import EndingPolicy
from core.common.json_types import Json
from core.ports.spec import PriceSpec
from providers.lago.provider import LagoProvider
from tests.support.scripted_lago import NO_ID, Reply, ScriptedLago

ENDING = EndingPolicy(lago_invoice="generate", lago_credit_note="credit", stripe_invoice_now=True, stripe_prorate=True)
PLAN: dict[str, Json] = {
    "lago_id": NO_ID,
    "code": "starter",
    "name": "Starter",
    "amount_cents": 1900,
    "amount_currency": "USD",
    "interval": "monthly",
    "pay_in_advance": True,
    "trial_period": 0.0,
    "bill_charges_monthly": None,
    "bill_fixed_charges_monthly": None,
    "pending_deletion": False,
    "minimum_commitment": None,
    "charges": [],
    "fixed_charges": [],
}
CHARGE: dict[str, Json] = {"lago_id": NO_ID, "invoice_display_name": None}


def found(**changed: Json) -> PriceSpec:
    """As the provider reads this plan."""
    script = ScriptedLago()
    provider = LagoProvider(script.url, "key", payment_provider_code=None, ending=ENDING)
    try:
        script.respond_with(Reply(200, {"plan": {**PLAN, **changed}}))
        price = provider.find_price("starter")
    finally:
        provider.close()
        script.close()
    assert price is not None
    return price


@pytest.fixture(params=["as Lago sends it", "without the fields that older versions lack"])
def plain(request: pytest.FixtureRequest) -> PriceSpec:
    lacking = dict.fromkeys(("pending_deletion", "trial_period", "minimum_commitment"))
    return found() if request.param == "as Lago sends it" else found(**lacking)


def test_a_plan_on_our_terms_has_no_others(plain: PriceSpec) -> None:
    assert (plain.other_terms, plain.remarks) == ((), ())


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"pay_in_advance": False}, "it is billed when a period has ended"),
        ({"trial_period": 14.0}, "it begins with 14 days that are free"),
        ({"interval": "yearly", "bill_charges_monthly": True}, "takes effect at the end of a month"),
        ({"interval": "yearly", "bill_fixed_charges_monthly": True}, "takes effect at the end of a month"),
        ({"pending_deletion": True}, "Lago is deleting it, which ends its subscriptions"),
        ({"minimum_commitment": {"amount_cents": 100}}, "it has a minimum commitment"),
        ({"fixed_charges": [{**CHARGE, "add_on_code": "setup"}]}, "it has a fixed charge beside its amount: setup"),
    ],
)
def test_what_bills_otherwise_is_named(changed: dict[str, Json], sentence: str) -> None:
    (term,) = found(**changed).other_terms
    assert sentence in term


def test_charges_for_usage_are_a_remark() -> None:
    price = found(charges=[{**CHARGE, "billable_metric_code": "api_calls"}])
    assert (price.other_terms, price.remarks) == ((), ("it bills usage, too: api_calls",))
