"""What the business sells: its plan catalog, and the prices and plans at both providers, also older and odd ones.

The catalog knows what a tier costs now and under which codes it was sold before. It does not know the rest.
"""

from typing import Any, Final

from sandbox.http import JsonDocument

AMOUNTS: Final = {"starter": 1900, "professional": 4900, "scale": 7900, "enterprise": 9900, "unlimited": 19900}
"""Of each tier, lowest first. Stripe charges for professional and scale, Lago for the others."""
UPGRADES: Final = {"starter": "enterprise", "enterprise": "unlimited", "professional": "scale"}
"""To a higher tier that the same provider charges for."""
FORMER_AMOUNTS: Final = {"starter": 1500, "professional": 3900}
PLANS_TOML: Final = """
[ending]
lago_invoice = "generate"
lago_credit_note = "credit"
stripe_invoice_now = true
stripe_prorate = true

[plans.starter]
rank = 1
name = "Starter"
amount = 1900
currency = "USD"
interval = "monthly"
charged_by = "lago"
lago_plan_code = "starter"
stripe_lookup_key = "starter_monthly_usd"
former_codes = { lago = ["starter_2023"] }

[plans.professional]
rank = 2
name = "Professional"
amount = 4900
currency = "USD"
interval = "monthly"
charged_by = "stripe"
lago_plan_code = "professional"
stripe_lookup_key = "professional_monthly_usd"
former_codes = { stripe = ["professional_2023_usd"] }

[plans.scale]
rank = 3
name = "Scale"
amount = 7900
currency = "USD"
interval = "monthly"
charged_by = "stripe"
lago_plan_code = "scale"
stripe_lookup_key = "scale_monthly_usd"

[plans.unlimited]
rank = 5
name = "Unlimited"
amount = 19900
currency = "USD"
interval = "monthly"
charged_by = "lago"
lago_plan_code = "unlimited"
stripe_lookup_key = "unlimited_monthly_usd"

[plans.enterprise]
rank = 4
name = "Enterprise"
amount = 9900
currency = "USD"
interval = "monthly"
charged_by = "lago"
lago_plan_code = "enterprise"
stripe_lookup_key = "enterprise_monthly_usd"
"""


def stripe_prices() -> dict[str, JsonDocument]:
    """By our name of the price, as the control routes take it."""
    current = {tier: _price(tier.title(), amount, f"{tier}_monthly_usd") for tier, amount in AMOUNTS.items()}
    tiers = [{"up_to": 10, "unit_amount": 900}, {"up_to": "inf", "unit_amount": 700}]
    usage = {"recurring": {"interval": "month", "usage_type": "metered", "meter": "mtr_calls"}}
    return current | {
        "former": _price("Professional", FORMER_AMOUNTS["professional"], "professional_2023_usd"),
        "own": _price("Professional for Friends", 2900, None),
        "euro": _price("Professional", 4500, None, currency="eur"),
        "yen": _price("Professional", 6900, None, currency="jpy"),
        "yearly": _price("Professional", 49000, None, recurring={"interval": "year"}),
        "usage": _price("Calls", 2, None, **usage),
        "tiered": _price("Seats", None, None, billing_scheme="tiered", tiers_mode="volume", tiers=tiers),
        "extra": _price("Support", 1000, None),
    }


def lago_plans() -> list[JsonDocument]:
    charges = [{"charge_model": "standard", "billable_metric_code": "calls", "properties": {"amount": "0.1"}}]
    return [
        *(_plan(tier, tier.title(), amount) for tier, amount in AMOUNTS.items()),
        _plan("starter_2023", "Starter", FORMER_AMOUNTS["starter"]),
        _plan("gold.2019", "Gold", 2500),
        _plan("starter_eur", "Starter", 1800, amount_currency="EUR"),
        _plan("starter_with_calls", "Starter with calls", 1900, charges=charges),
    ]


def _price(name: str, amount: int | None, lookup_key: str | None, **fields: Any) -> JsonDocument:  # noqa: ANN401
    price: JsonDocument = {
        "currency": "usd",
        "product_data": {"name": name},
        "recurring": {"interval": "month"},
        **({} if amount is None else {"unit_amount": amount}),
        **({} if lookup_key is None else {"lookup_key": lookup_key}),
    }
    return price | fields


def _plan(code: str, name: str, amount: int, **fields: Any) -> JsonDocument:  # noqa: ANN401
    return {
        "code": code,
        "name": name,
        "amount_cents": amount,
        "amount_currency": "USD",
        "interval": "monthly",
        "pay_in_advance": True,
    } | fields
