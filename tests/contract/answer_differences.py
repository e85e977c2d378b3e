"""Where the sandbox's answers differ from the providers' documents, with the reason for each.

``tests/sandbox/test_documents.py`` fails when an entry no longer occurs, so the list only has what is still true.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class AnswerDifference:
    """``place`` and ``problem`` are those of an ``AnswerFault``."""

    place: str
    problem: str
    reason: str


_TOTAL_COUNT = (
    "Stripe counts nested lists, as the examples of its API reference show; the document leaves the field out"
)
_NULL = "the server sends null in fields that the document does not call nullable (lago.md 3.1, 4, 5.1)"
_SERIALIZER = "the server's serializer writes it, the document does not have it (lago.md 3.1, 4, 5.1)"
_STATUS = "the server answers it, the document does not have it here (lago.md 1.1, 12)"


def _each(problem: str, reason: str, *places: str) -> tuple[AnswerDifference, ...]:
    return tuple(AnswerDifference(place, problem, reason) for place in places)


STRIPE = _each("not in the document", _TOTAL_COUNT, "subscription.items.total_count", "invoice.lines.total_count")

LAGO = (
    *_each(
        "null",
        _NULL,
        "CustomerBillingConfiguration.document_locale",
        "CustomerBillingConfiguration.invoice_grace_period",
        "CustomerBillingConfiguration.payment_provider",
        "CustomerBillingConfiguration.payment_provider_code",
        "CustomerBillingConfiguration.provider_customer_id",
        "CustomerBillingConfiguration.sync_with_provider",
        "InvoiceObject.file_url",
        "InvoiceObject.payment_dispute_lost_at",
        "PaymentMethodReference.payment_method_id",
        "PlanObject.description",
        "PlanObject.invoice_display_name",
        "PlanObject.trial_period",
    ),
    *_each(
        "not in the document",
        _SERIALIZER,
        "CustomerObject.external_salesforce_id",
        "CustomerObjectExtended.external_salesforce_id",
        "InvoiceObject.purchase_order_number",
        "InvoiceObject.total_due_amount_cents",
        "InvoiceObject.total_offsetted_credit_note_amount_cents",
        "InvoiceObject.total_paid_amount_cents",
        "InvoiceObject.voided_at",
        "InvoiceObject.xml_url",
        "PlanObject.active_subscriptions_count",
        "PlanObject.applicable_usage_thresholds",
        "PlanObject.customers_count",
        "PlanObject.draft_invoices_count",
        "PlanObject.parent_id",
        "PlanObject.pending_deletion",
        "SubscriptionObject.applicable_usage_thresholds",
        "SubscriptionObject.plan",
        "SubscriptionObject.progressive_billing_disabled",
        "SubscriptionObjectExtended.entitlements",
        "SubscriptionObjectExtended.progressive_billing_disabled",
    ),
    *_each("not in the document", _STATUS, "status 403", "status 405"),
    AnswerDifference(
        "status 400", "the body is not JSON", "the server answers malformed JSON with no body (lago.md 1.1)"
    ),
)

DIFFERENCES: Mapping[str, tuple[AnswerDifference, ...]] = {"stripe": STRIPE, "lago": LAGO}
