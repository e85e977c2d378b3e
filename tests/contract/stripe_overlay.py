"""What Stripe's document of 2026-08-26.dahlia lacks: the newer version of stripe-python 16.1, and rules in prose."""

from tests.contract.documents import Json, Object
from tests.contract.operations import Difference

_UPDATE = "/v1/subscriptions/{subscription_exposed_id}"
_RESUME = "/v1/subscriptions/{subscription}/resume"
_PAUSE = "/v1/subscriptions/{subscription}/pause"
_PREVIEW = "/v1/invoices/create_preview"

_ENDIVE = "new in 2026-09-30.endive, which the SDK sends (stripe.md 8)"
_METADATA_RULE = "50 keys of 40 characters without brackets, values of 500 (stripe.md 4, Stripe's page /api/metadata)"
_DUE = "an invoice that is sent needs a due date (stripe.md 6)"
_PROSE = "only in the document's prose (stripe.md 5, 6)"

_STRINGS: Object = {"type": "array", "items": {"type": "string", "maxLength": 5000}}


def _one_of(*names: str) -> Object:
    return {"type": "string", "enum": [*names]}


def _record(required: list[str], properties: Object) -> Object:
    return {"type": "object", "required": [*required], "properties": properties}


_ANCHOR = _record(["type"], {"type": _one_of("now", "unchanged")})
_PREVIEW_ANCHOR = _record(
    ["type"], {"type": _one_of("now", "unchanged", "timestamp"), "timestamp": {"type": "integer"}}
)
_TRIAL = _record(["trial_offer"], {"trial_offer": {"type": "string"}})
_TRIAL_END = _record(
    [],
    {
        "billing_cycle_anchor": _one_of("now", "unchanged"),
        "missing_payment_method": _one_of("cancel", "create_invoice", "pause"),
    },
)
_PAUSE_BODY = _record(
    [],
    {
        "bill_for": _record(
            [],
            {
                "outstanding_usage_through": _record(["type"], {"type": _one_of("none", "now")}),
                "unused_time_from": _record(["type"], {"type": _one_of("item_current_period_start", "none", "now")}),
            },
        ),
        "expand": _STRINGS,
        "invoicing_behavior": _one_of("invoice", "pending_invoice_item"),
        "type": _one_of("subscription"),
    },
)
_METADATA: Object = {
    "anyOf": [
        {
            "type": "object",
            "maxProperties": 50,
            "propertyNames": {"minLength": 1, "maxLength": 40},
            "additionalProperties": {"type": "string", "maxLength": 500},
        },
        _one_of(""),
    ]
}
_PAGE: Object = {"type": "integer", "minimum": 1, "maximum": 100}
_INVOICED: Object = {
    "required": ["collection_method"],
    "properties": {"collection_method": _one_of("send_invoice")},
    "additionalProperties": True,
}


def _body(method: str, path: str, names: str, now: Json, reason: str) -> Difference:
    """``names`` are the nested fields, separated by dots; ``[]`` means the items of a list."""
    steps = [part for name in names.split(".") for part in ("properties", name.removesuffix("[]"), *_items(name))]
    return Difference(method, path, ("query" if method != "POST" else "body", *steps), now, reason)


def _items(name: str) -> tuple[str, ...]:
    return ("items",) if name.endswith("[]") else ()


OVERLAY = (
    _body("POST", _UPDATE, "billing_cycle_anchor", _ANCHOR, _ENDIVE),
    _body("POST", _RESUME, "billing_cycle_anchor", _ANCHOR, _ENDIVE),
    _body("POST", _PREVIEW, "subscription_details.billing_cycle_anchor", _PREVIEW_ANCHOR, _ENDIVE),
    _body("POST", _PREVIEW, "subscription_details.items[].current_trial", _TRIAL, _ENDIVE),
    _body("POST", "/v1/subscriptions", "items[].current_trial", _TRIAL, _ENDIVE),
    _body("POST", _UPDATE, "items[].current_trial", _TRIAL, _ENDIVE),
    _body("POST", "/v1/subscriptions", "trial_settings.end_behavior", _TRIAL_END, _ENDIVE),
    _body("POST", _UPDATE, "trial_settings.end_behavior", _TRIAL_END, _ENDIVE),
    Difference(
        "GET",
        "/v1/coupons",
        (),
        {"query": {"type": "object", "properties": {"limit": _PAGE}, "additionalProperties": False}},
        "the reduced document leaves coupons out (Stripe's page /api/coupons/list)",
    ),
    Difference("POST", _PAUSE, (), {"query": {"type": "object", "properties": {}}, "body": _PAUSE_BODY}, _ENDIVE),
    *(
        _body("POST", path, "metadata", _METADATA, _METADATA_RULE)
        for path in ("/v1/customers", "/v1/customers/{customer}", "/v1/subscriptions", _UPDATE)
    ),
    *(
        _body("GET", path, "limit", _PAGE, "1 to 100 a page: " + _PROSE)
        for path in (
            "/v1/customers",
            "/v1/customers/search",
            "/v1/subscriptions",
            "/v1/subscriptions/search",
            "/v1/prices",
            "/v1/events",
            "/v1/invoices",
            "/v1/credit_notes",
            "/v1/customers/{customer}/balance_transactions",
        )
    ),
    _body("GET", "/v1/prices", "lookup_keys", {**_STRINGS, "maxItems": 10}, "at most 10 a call: " + _PROSE),
    _body("GET", "/v1/events", "types", {**_STRINGS, "maxItems": 20}, "at most 20 a call: stripe.md 7"),
    Difference("POST", "/v1/subscriptions", ("body", "properties", "items", "maxItems"), 20, "at most 20: " + _PROSE),
    Difference("POST", _UPDATE, ("body", "properties", "items", "maxItems"), 20, "at most 20: " + _PROSE),
    Difference(
        "POST",
        "/v1/subscriptions",
        ("body", "required"),
        ["customer", "items"],
        "not marked as required since customer_account exists; here only customers pay (stripe.md 4)",
    ),
    Difference(
        "POST",
        "/v1/subscriptions",
        ("body", "properties", "customer", "minLength"),
        1,
        "an empty customer passes a schema check (stripe.md 4)",
    ),
    Difference("POST", "/v1/subscriptions", ("body", "if"), _INVOICED, _DUE),
    Difference("POST", "/v1/subscriptions", ("body", "then"), {"required": ["days_until_due"]}, _DUE),
)
