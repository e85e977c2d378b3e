"""How a subscription collects its invoices, and what a customer needs for that before a paid plan begins.

Stripe mails an invoice (``send_invoice``) to the customer's email address, and refuses a subscription without one; it
names neither a code nor a field then (stripe.md 6). What it charges by itself (``charge_automatically``) needs a
payment method. A free plan needs neither, because its invoices are paid the moment they are made. So it always begins
with ``charge_automatically``, and its marks keep the method for the day when it becomes paid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from core.common.json_types import Json
from core.ports.errors import RejectedError
from core.ports.provider import AttemptContext
from core.ports.spec import SubscriptionSpec
from providers.stripe.client import StripeClient
from providers.stripe.errors import STRIPE
from providers.stripe.metadata import to_metadata
from providers.stripe.responses import StripeCustomer, StripePrice, StripeSubscription

CollectionMethod = Literal["send_invoice", "charge_automatically"]

COLLECTION_MARK: Final = "collection_method"  # of a subscription that began with a free plan
BILLING_EMAIL_MISSING: Final = "no_billing_email"
PAYMENT_METHOD_MISSING: Final = "no_payment_method"


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionPolicy:
    """The settings of the deployment. They apply to new subscriptions; existing ones keep their method."""

    method: CollectionMethod = "send_invoice"
    days_until_due: int = 30

    def terms(self, method: str) -> dict[str, Json]:
        if method == "send_invoice":
            return {"collection_method": "send_invoice", "days_until_due": self.days_until_due}
        return {"collection_method": "charge_automatically"}


DEFAULT_COLLECTION: Final = CollectionPolicy()


class StripeCollection:
    def __init__(self, client: StripeClient, policy: CollectionPolicy) -> None:
        self._client = client
        self._policy = policy

    def create_terms(self, spec: SubscriptionSpec, price: StripePrice, attempt: AttemptContext) -> dict[str, Json]:
        """The fields of a create request. Raises ``RejectedError`` if Stripe could not collect a paid plan."""
        marks = {"org_id": spec.org_id, "plan": spec.plan_code, "database_id": attempt.database_id}
        method = self._policy.method
        if not price.is_free:
            self._refuse_uncollectable(spec, method, attempt)
            return {**self._policy.terms(method), "metadata": {**to_metadata(marks)}}
        later = {COLLECTION_MARK: method} if method != "charge_automatically" else {}
        return {**self._policy.terms("charge_automatically"), "metadata": {**to_metadata(marks | later)}}

    def change_terms(
        self, found: StripeSubscription, spec: SubscriptionSpec, price: StripePrice, attempt: AttemptContext
    ) -> dict[str, Json] | None:
        """The change that ``found``, a free subscription, needs before its first paid price; None if it needs none.

        Raises ``RejectedError`` if Stripe could not collect the paid plan.
        """
        if price.is_free:
            return None
        method = found.marks.get(COLLECTION_MARK) or found.collection_method
        if not (method == "charge_automatically" and found.default_payment_method):
            self._refuse_uncollectable(spec, method, attempt)
        return self._policy.terms(method) if method != found.collection_method else None

    def refuse_missing_email(self, spec: SubscriptionSpec, attempt: AttemptContext) -> None:
        """Raises ``RejectedError`` if the customer has no email address at Stripe, whatever our row says."""
        if not spec.customer_id or not self._read(spec.customer_id, attempt).email:
            message = (
                f"Stripe mails the invoices of this plan, and {_customer_phrase(spec)} has no email address: set "
                f"one with `billing-sync set {spec.org_id} --billing-email ADDRESS`, and the subscription is created "
                f"by itself; or set one in Stripe, then run `billing-sync retry {spec.org_id}`"
            )
            raise RejectedError(STRIPE, message, BILLING_EMAIL_MISSING)

    def _refuse_uncollectable(self, spec: SubscriptionSpec, method: str, attempt: AttemptContext) -> None:
        if method == "send_invoice":
            if not spec.has_billing_email:  # the customer got ours before the subscription
                self.refuse_missing_email(spec, attempt)
            return
        if not spec.customer_id or not self._read(spec.customer_id, attempt).has_payment_method:
            message = (
                f"Stripe charges this plan automatically, and {_customer_phrase(spec)} has no default payment "
                f"method: set one in Stripe, then run `billing-sync retry {spec.org_id}`"
            )
            raise RejectedError(STRIPE, message, PAYMENT_METHOD_MISSING)

    def _read(self, customer_id: str, attempt: AttemptContext) -> StripeCustomer:
        return self._client.send(
            attempt,
            "GET /v1/customers/{id}",
            f"read customer {customer_id}",
            lambda: self._client.v1.customers.retrieve(customer_id),
            StripeCustomer,
        )


def _customer_phrase(spec: SubscriptionSpec) -> str:
    return f"customer {spec.customer_id}" if spec.customer_id else "the customer, who is not created yet,"
