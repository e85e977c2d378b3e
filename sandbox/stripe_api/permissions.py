"""What a restricted key needs for each operation, by Stripe's own documents, and the refusal of a key that lacks it.

The names are those of Stripe's permissions references (docs.stripe.com/keys/permissions-reference and
/stripe-apps/reference/permissions). A permission to write includes reading. An object that a response expands needs the
permission to read it, too.
"""

from typing import Final
from urllib.parse import parse_qsl

from sandbox.http import ProviderRequest, ProviderResponse
from sandbox.stripe_api.errors import error_response

# Any of the names is enough. The refusal shows the first one.
OPERATION_PERMISSIONS: Final[dict[str, tuple[str, ...]]] = {
    # The reference says connected_account_read; the refusals that were reported name the other one.
    "GET /v1/account": ("accounts_kyc_basic_read", "connected_account_read"),
    "POST /v1/customers": ("customer_write",),
    "GET /v1/customers": ("customer_read",),
    "GET /v1/customers/search": ("customer_read",),
    "GET /v1/customers/{id}": ("customer_read",),
    "POST /v1/customers/{id}": ("customer_write",),
    "DELETE /v1/customers/{id}": ("customer_write",),
    "GET /v1/customers/{id}/balance_transactions": ("customer_read",),
    "POST /v1/customers/{id}/balance_transactions": ("customer_write",),
    "POST /v1/products": ("product_write",),
    "GET /v1/products": ("product_read",),
    "GET /v1/products/{id}": ("product_read",),
    "POST /v1/products/{id}": ("product_write",),
    "DELETE /v1/products/{id}": ("product_write",),
    # Prices were plans once, and their permissions still have that name.
    "POST /v1/prices": ("plan_write",),
    "GET /v1/prices": ("plan_read",),
    "GET /v1/prices/{id}": ("plan_read",),
    "POST /v1/prices/{id}": ("plan_write",),
    "POST /v1/subscriptions": ("subscription_write",),
    "GET /v1/subscriptions": ("subscription_read",),
    "GET /v1/subscriptions/{id}": ("subscription_read",),
    "POST /v1/subscriptions/{id}": ("subscription_write",),
    "DELETE /v1/subscriptions/{id}": ("subscription_write",),
    "GET /v1/coupons": ("coupon_read",),
    "GET /v1/events": ("event_read",),
    "GET /v1/events/{id}": ("event_read",),
    "GET /v1/webhook_endpoints": ("webhook_read",),
    "POST /v1/invoices/create_preview": ("invoice_write",),
    "GET /v1/invoices": ("invoice_read",),
    "GET /v1/invoices/{id}": ("invoice_read",),
    "POST /v1/invoices/{id}": ("invoice_write",),
    "DELETE /v1/invoices/{id}": ("invoice_write",),
    "GET /v1/invoices/{id}/lines": ("invoice_read",),
    "POST /v1/invoices/{id}/finalize": ("invoice_write",),
    "POST /v1/invoices/{id}/pay": ("invoice_write",),
    "POST /v1/invoices/{id}/void": ("invoice_write",),
    "POST /v1/invoices/{id}/mark_uncollectible": ("invoice_write",),
    "GET /v1/invoiceitems": ("invoice_read",),
    "GET /v1/invoiceitems/{id}": ("invoice_read",),
    "DELETE /v1/invoiceitems/{id}": ("invoice_write",),
    "POST /v1/credit_notes": ("credit_note_write",),
    "GET /v1/credit_notes": ("credit_note_read",),
    "GET /v1/credit_notes/preview": ("credit_note_read",),
    "GET /v1/credit_notes/{id}": ("credit_note_read",),
    "POST /v1/credit_notes/{id}/void": ("credit_note_write",),
}
EXPANSION_PERMISSIONS: Final[dict[str, str]] = {
    "coupon": "coupon_read",
    "credit_note": "credit_note_read",
    "customer": "customer_read",
    "invoice": "invoice_read",
    "latest_invoice": "invoice_read",
    "price": "plan_read",
    "product": "product_read",
    "subscription": "subscription_read",
    "subscriptions": "subscription_read",
}


def refuse(request: ProviderRequest, granted: list[str], account: str) -> ProviderResponse | None:
    """403 if the key has none of the permissions that the request needs. ``granted``: ``rak_customer_write``."""
    for names in _needed(request):
        if not any(_is_granted(name, granted) for name in names):
            return missing_permission(request.bearer_token, f"rak_{names[0]}", account)
    return None


def missing_permission(key: str, permission: str, account: str) -> ProviderResponse:
    message = (
        f"The provided key '{masked(key)}' does not have the required permissions for this endpoint on account "
        f"'{account}'. Having the '{permission}' permission would allow this request to continue."
    )
    return error_response(403, message)


def masked(key: str) -> str:
    return f"{key[:3]}****{key[-4:]}"


def _needed(request: ProviderRequest) -> list[tuple[str, ...]]:
    """An operation that Stripe does not have needs none: its answer is 404."""
    needed = [OPERATION_PERMISSIONS[request.operation]] if request.operation in OPERATION_PERMISSIONS else []
    return needed + [(EXPANSION_PERMISSIONS[name],) for name in _expanded(request) if name in EXPANSION_PERMISSIONS]


def _expanded(request: ProviderRequest) -> list[str]:
    """Each object of ``expand[]=data.customer`` but the list itself."""
    form = f"{request.query}&{request.body.decode(errors='replace')}"
    paths = [path for name, path in parse_qsl(form) if name.partition("[")[0] == "expand"]
    return [part for path in paths for part in path.split(".")]


def _is_granted(name: str, granted: list[str]) -> bool:
    writing = f"{name.removesuffix('_read')}_write"
    return f"rak_{name}" in granted or f"rak_{writing}" in granted
