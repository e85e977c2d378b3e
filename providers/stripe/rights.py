"""The rights that a restricted key (``rk_…``) needs, for which requests, and what stops without each.

Stripe names a right in the refusal, and only there (stripe.md 1.9). A right to write includes reading. So reading shows
that a key lacks a right to write only if it may not read either; a change that needs it shows the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import stripe

from core.ports.errors import ProviderError
from providers.stripe.client import StripeClient
from providers.stripe.errors import MISSING_PERMISSION
from providers.stripe.responses import StripeModel
from providers.transport.permits import READ_ONLY

# ``all``: nothing is sent to Stripe. ``some``: what needs it is parked or fails. ``nothing``: only a remark is missing.
AffectedByMissingRight = Literal["all", "some", "nothing"]
_NAMED: Final = re.compile(r"\(permission ([a-z_]+(?: or [a-z_]+)*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class StripeRight:
    """``resource``, ``access``: as the dashboard names them. ``id``: as Stripe's refusal names it.

    ``requests`` include those that only expand an object of it. ``consequence``: what happens without it.
    """

    resource: str
    access: Literal["Read", "Write"]
    id: str
    requests: tuple[str, ...]
    affects: AffectedByMissingRight
    consequence: str
    read_one: Callable[[StripeClient], stripe.StripeObject]

    @property
    def name(self) -> str:
        return f"{self.resource}: {self.access}"


ACCOUNT_RIGHT: Final = StripeRight(
    resource="Accounts",
    access="Read",
    id="rak_accounts_kyc_basic_read",
    requests=("GET /v1/account",),
    affects="nothing",
    consequence="whose account it is, is read from Stripe's refusal; nothing is sent if that names no account",
    read_one=lambda client: client.v1.accounts.retrieve_current(),
)

STRIPE_RIGHTS: Final = (
    StripeRight(
        resource="Customers",
        access="Write",
        id="rak_customer_write",
        requests=(
            "POST /v1/customers",
            "GET /v1/customers",
            "GET /v1/customers/search",
            "GET /v1/customers/{id}",
            "POST /v1/customers/{id}",
            "POST /v1/credit_notes",
            "GET /v1/credit_notes",
        ),
        affects="all",
        consequence="no organization is synced with Stripe: the circuit breaker opens",
        read_one=lambda client: client.v1.customers.list({"limit": 1}),
    ),
    StripeRight(
        resource="Subscriptions",
        access="Write",
        id="rak_subscription_write",
        requests=(
            "POST /v1/subscriptions",
            "GET /v1/subscriptions",
            "GET /v1/subscriptions/{id}",
            "POST /v1/subscriptions/{id}",
            "DELETE /v1/subscriptions/{id}",
            "GET /v1/customers/{id}",
        ),
        affects="all",
        consequence="no organization is synced with Stripe: the circuit breaker opens",
        read_one=lambda client: client.v1.subscriptions.list({"limit": 1}),
    ),
    StripeRight(
        resource="Products",
        access="Write",
        id="rak_product_write",
        requests=("POST /v1/products", "GET /v1/products", "GET /v1/products/{id}", "GET /v1/prices"),
        affects="some",
        consequence="`billing-sync plans push` creates no price in Stripe, and who needs a price there is parked",
        read_one=lambda client: client.v1.products.list({"limit": 1}),
    ),
    StripeRight(
        resource="Prices",
        access="Write",
        id="rak_plan_write",
        requests=("POST /v1/prices", "GET /v1/prices", "GET /v1/prices/{id}"),
        affects="some",
        consequence="`billing-sync plans push` creates no price in Stripe, and who needs a price there is parked",
        read_one=lambda client: client.v1.prices.list({"limit": 1}),
    ),
    StripeRight(
        resource="Invoices",
        access="Write",
        id="rak_invoice_write",
        requests=("GET /v1/invoices", "POST /v1/invoices/{id}/finalize", "POST /v1/invoices/create_preview"),
        affects="some",
        consequence="an organization that leaves Stripe in mid-period is parked, and no plan change has a quote",
        read_one=lambda client: client.v1.invoices.list({"limit": 1}),
    ),
    StripeRight(
        resource="Credit notes",
        access="Write",
        id="rak_credit_note_write",
        requests=("GET /v1/credit_notes", "POST /v1/credit_notes"),
        affects="some",
        consequence="an organization that leaves Stripe in mid-period is parked before it is credited",
        read_one=lambda client: client.v1.credit_notes.list({"limit": 1}),
    ),
    StripeRight(
        resource="Events",
        access="Read",
        id="rak_event_read",
        requests=("GET /v1/events",),
        affects="some",
        consequence=(
            "an organization whose customer may or may not have been created is parked, a webhook that did not come is "
            "not noticed, and a drift check does not say who changed what"
        ),
        read_one=lambda client: client.v1.events.list({"limit": 1}),
    ),
    StripeRight(
        resource="Coupons",
        access="Read",
        id="rak_coupon_read",
        requests=("GET /v1/coupons", "GET /v1/customers", "GET /v1/customers/{id}", "GET /v1/subscriptions"),
        affects="some",
        consequence="`billing-sync adopt discover` and `adopt apply` cannot read who has a discount, and adopt nobody",
        read_one=lambda client: client.v1.coupons.list({"limit": 1}),
    ),
    ACCOUNT_RIGHT,
    StripeRight(
        resource="Webhook endpoints",
        access="Read",
        id="rak_webhook_read",
        requests=("GET /v1/webhook_endpoints",),
        affects="nothing",
        consequence="`billing-sync doctor` cannot check whether our webhook endpoint is registered",
        read_one=lambda client: client.v1.webhook_endpoints.list({"limit": 1}),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingRight:
    """``named``: what Stripe's refusal says; it may be another name for the same right, or a name for reading only."""

    right: StripeRight
    named: str


def missing_rights(client: StripeClient) -> list[MissingRight]:
    """The rights that the key cannot even read with, by one read for each. Raises ``ProviderError``."""
    return [each for right in STRIPE_RIGHTS if (each := _refused(client, right)) is not None]


def named_right(message: str) -> str | None:
    """What Stripe called the right in the refusal that an error's message is about."""
    found = _NAMED.search(message)
    return found[1] if found else None


def _refused(client: StripeClient, right: StripeRight) -> MissingRight | None:
    operation = next(each for each in right.requests if each.startswith("GET "))
    try:
        client.send(READ_ONLY, operation, f"check {right.id}", lambda: right.read_one(client), StripeModel)
    except ProviderError as error:
        if error.code != MISSING_PERMISSION:
            raise
        return MissingRight(right=right, named=named_right(error.message) or right.id)
    return None
