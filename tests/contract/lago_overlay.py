"""Differences between Lago's server and its document of 1.51.0. The server's code is right (lago.md 0)."""

from tests.contract.documents import Json, Object
from tests.contract.operations import Difference

_CUSTOMERS = "/api/v1/customers"
_SUBSCRIPTIONS = "/api/v1/subscriptions"
_ONE = "/api/v1/subscriptions/{external_id}"
_OF_CUSTOMER = "/api/v1/customers/{external_customer_id}/subscriptions"

_NO_QUERY: Object = {"query": {"type": "object", "properties": {}}}
_STATUS: Object = {"type": "string", "enum": ["pending", "active", "terminated", "canceled", "incomplete"]}
_PENDING: Object = {"type": "string", "enum": ["pending"]}
_LIVING: Object = {"type": "string", "enum": ["active", "pending", "incomplete"]}
_ID: Object = {"type": "string", "pattern": r"^\S(.*\S)?\Z"}
_TRIMMED = "required, and trimmed here but not on customers: outer blanks create a second customer (lago.md 3.1, 5.1)"
_METADATA: Object = {
    "type": "array",
    "maxItems": 5,
    "items": {
        "type": "object",
        "required": ["key", "value"],
        "properties": {
            "id": {"type": "string", "format": "uuid"},
            "key": {"type": "string", "minLength": 1, "maxLength": 20},
            "value": {"type": "string", "minLength": 1, "maxLength": 100},
            "display_in_invoice": {"type": "boolean"},
        },
    },
}
_PROVIDER: Object = {"type": ["string", "null"], "enum": ["stripe", "adyen", "gocardless", None]}
_CREDIT_NOTE: Object = {"type": "string", "enum": ["credit", "refund", "offset", "skip"]}
_INVOICE: Object = {"type": "string", "enum": ["generate", "skip"]}
_THRESHOLDS: Object = {"type": "array", "items": {"$ref": "#/components/schemas/UsageThresholdInput"}}
_ENDING: Object = {"type": ["string", "null"], "format": "date-time"}


def _query(method: str, path: str, name: str, now: Json, reason: str) -> Difference:
    return Difference(method, path, ("query", "properties", name), now, reason)


def _body(method: str, path: str, root: str, name: str, now: Json, reason: str) -> Difference:  # noqa: PLR0913, PLR0917
    return Difference(method, path, ("body", "properties", root, "properties", name), now, reason)


def _subscription(name: str, now: Json, reason: str) -> Difference:
    return _body("PUT", _ONE, "subscription", name, now, reason)


OVERLAY = (
    Difference("GET", "/health", (), _NO_QUERY, "outside /api/v1 (lago.md 1.1)"),
    Difference("GET", "/api/v1/organizations", (), _NO_QUERY, "the document has only PUT (lago.md 1.1, 12)"),
    _query("GET", _CUSTOMERS, "external_id", {"type": "string"}, "works, undocumented (lago.md 3.4, 12)"),
    _query("GET", _SUBSCRIPTIONS, "external_id", {"type": "string"}, "works, undocumented (lago.md 5.3, 12)"),
    _query("GET", _SUBSCRIPTIONS, "overridden", {"type": "boolean"}, "works, undocumented (lago.md 5.3)"),
    *(
        _query("GET", path, "status[]", {"type": "array", "items": _STATUS}, "incomplete is missing (lago.md 5.1, 5.3)")
        for path in (_SUBSCRIPTIONS, _OF_CUSTOMER)
    ),
    _query("GET", _ONE, "status", _STATUS, "incomplete is missing (lago.md 5.3)"),
    _query("PUT", _ONE, "status", _LIVING, "incomplete is missing (lago.md 5.3)"),
    _query("DELETE", _ONE, "status", _PENDING, "any other text is ignored and ends the active row (lago.md 5.3)"),
    _query("DELETE", _ONE, "on_termination_credit_note", _CREDIT_NOTE, "offset is missing (lago.md 5.3)"),
    _body("POST", _CUSTOMERS, "customer", "external_id", _ID, _TRIMMED),
    _body(
        "POST",
        _CUSTOMERS,
        "customer",
        "metadata",
        _METADATA,
        "limits; display_in_invoice is optional (lago.md 3.3)",
    ),
    Difference(
        "POST",
        _CUSTOMERS,
        ("body", "properties", "customer", "properties", "billing_configuration", "properties", "payment_provider"),
        _PROVIDER,
        "null unlinks (lago.md 3.5)",
    ),
    *(
        _body("POST", _SUBSCRIPTIONS, "subscription", name, _ID, _TRIMMED)
        for name in ("external_id", "external_customer_id", "plan_code")
    ),
    _body("POST", _SUBSCRIPTIONS, "subscription", "ending_at", _ENDING, "null is accepted (lago.md 5.1)"),
    Difference(
        "PUT",
        _ONE,
        ("body", "properties", "subscription", "required"),
        [],
        "the server does not require ending_at, and the SDK leaves it out (lago.md 5.3)",
    ),
    _subscription("on_termination_credit_note", _CREDIT_NOTE, "permitted by the server (lago.md 5.3)"),
    _subscription("on_termination_invoice", _INVOICE, "permitted by the server (lago.md 5.3)"),
    _subscription("usage_thresholds", _THRESHOLDS, "permitted by the server (lago.md 5.3)"),
    Difference(
        "POST",
        "/api/v1/events",
        ("body", "properties", "event", "properties", "timestamp"),
        {"type": ["number", "string"]},
        "seconds may have a fraction (lago.md 7)",
    ),
)
