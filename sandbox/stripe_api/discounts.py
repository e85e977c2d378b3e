"""Stripe's coupons and the discounts that they give to a customer or a subscription.

Coupons are created by hand only. A discount is shown, and it takes nothing off the sandbox's invoices.
"""

from sandbox.http import JsonDocument
from sandbox.months import months_after, utc_datetime
from sandbox.stripe_api import forms
from sandbox.stripe_api.errors import invalid_param, not_found
from sandbox.stripe_api.serializers import StripeTables, new_id

MAX_DISCOUNTS = 20
DISCOUNT_FIELDS = forms.array(
    forms.record(
        {
            "coupon": forms.text(clearable=False),
            **dict.fromkeys(("discount", "discount_end", "promotion_code", "settings"), forms.unsupported),
        },
        required=("coupon",),
    ),
    MAX_DISCOUNTS,
)
COUPON_FIELDS: forms.FormSchema = {
    "amount_off": forms.integer(1),
    "currency": forms.text(3, clearable=False),
    "duration": forms.choice(("forever", "once", "repeating")),
    "duration_in_months": forms.integer(1),
    "id": forms.text(clearable=False),
    "metadata": forms.metadata,
    "name": forms.text(40),
    "percent_off": forms.decimal_amount,
}


class StripeDiscountsApi:
    def __init__(self, tables: StripeTables) -> None:
        self._tables = tables

    def create_coupon(self, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, COUPON_FIELDS, "duration")
        if ("percent_off" in sent) == ("amount_off" in sent):
            raise invalid_param(None, "Pass percent_off or amount_off.")
        percent = sent.get("percent_off")
        coupon_id = str(sent.get("id") or new_id("", 8))
        row: JsonDocument = {
            "id": coupon_id,
            "object": "coupon",
            "amount_off": sent.get("amount_off"),
            "created": self._tables.now(),
            "currency": sent.get("currency"),
            "duration": sent["duration"],
            "duration_in_months": sent.get("duration_in_months"),
            "livemode": False,
            "max_redemptions": None,
            "metadata": forms.merge_metadata({}, sent.get("metadata", {})),
            "name": sent.get("name"),
            "percent_off": None if percent is None else float(percent),
            "redeem_by": None,
            "times_redeemed": 0,
            "valid": True,
        }
        self._tables.coupons.put(coupon_id, row)
        return row

    def list_coupons(self, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, forms.PAGINATION_FIELDS)
        return self._tables.page(list(self._tables.coupons), sent, "/v1/coupons")

    def of_customer(self, customer_id: str, coupon_id: str) -> JsonDocument:
        """A customer's discount is no id: every answer contains it."""
        return self._discount(coupon_id, customer_id, None)

    def of_subscription(self, subscription: JsonDocument, sent: list[JsonDocument]) -> list[str]:
        return [self._discount(one["coupon"], subscription["customer"], subscription["id"])["id"] for one in sent]

    def _discount(self, coupon_id: str, customer_id: str, subscription_id: str | None) -> JsonDocument:
        coupon = self._tables.coupons.get(coupon_id)
        if coupon is None:
            raise not_found("coupon", coupon_id, "discounts[0][coupon]", in_path=False)
        self._tables.coupons.put(coupon_id, {**coupon, "times_redeemed": coupon["times_redeemed"] + 1})
        now = self._tables.now()
        months = coupon["duration_in_months"] if coupon["duration"] == "repeating" else None
        row: JsonDocument = {
            "id": new_id("di_", 24),
            "object": "discount",
            "checkout_session": None,
            "customer": customer_id,
            "customer_account": None,
            "end": None if months is None else int(months_after(utc_datetime(now), months).timestamp()),
            "invoice": None,
            "invoice_item": None,
            "promotion_code": None,
            "source": {"coupon": coupon_id, "type": "coupon"},
            "start": now,
            "subscription": subscription_id,
            "subscription_item": None,
        }
        self._tables.discounts.put(row["id"], row)
        return row
