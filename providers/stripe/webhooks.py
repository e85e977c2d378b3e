"""Stripe's webhooks: genuine by the SDK's own check of the raw bytes, then read for where to look and nothing else."""

from __future__ import annotations

import json
from typing import Final

import stripe

from core.db.models.inbox import Concern
from core.inbox.provider_webhooks import NotGenuineError, Told, UnreadableError
from core.organizations.validation import ID_PATTERN
from providers.stripe.state_reader import OUR_KEYS
from providers.transport.safe_ids import found

TOLERANCE: Final = 300  # seconds; what was signed before is a replay
SIGNATURE: Final = "Stripe-Signature"

CONCERNS: Final[dict[str, Concern]] = {
    "customer.deleted": "look",
    "customer.subscription.created": "began",
    "customer.subscription.updated": "look",
    "customer.subscription.deleted": "ended",
    "customer.subscription.paused": "look",
    "customer.subscription.resumed": "look",
    "customer.subscription.pending_update_applied": "look",
    "customer.subscription.pending_update_expired": "look",
    "invoice.payment_failed": "failed",
    "invoice.payment_action_required": "failed",
    "invoice.finalization_failed": "failed",
    "invoice.overdue": "failed",
    "invoice.paid": "look",
    "invoice.voided": "look",
    "invoice.marked_uncollectible": "look",
}
# A change there that a request of ours made is known here; a payment that fails is news, whoever began it.
_MAY_BE_OURS: Final = "customer."


class StripeWebhooks:
    """``secret``: of the endpoint, ``whsec_…``."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def read(self, raw: bytes, signature: str | None) -> Told:
        """Raises ``NotGenuineError``, ``UnreadableError``; neither says what was in it."""
        self._check(raw, signature)
        event = _parsed(raw)
        name, kind = found(event, "id"), found(event, "type")
        if name is None or kind is None:
            raise UnreadableError
        about = ("data", "object")
        object_id = found(event, *about, "id")
        is_customer = found(event, *about, "object") == "customer"
        org_id = found(event, *about, "metadata", "org_id")
        key = found(event, "request", "idempotency_key")
        concern = CONCERNS.get(kind)
        livemode = event.get("livemode")
        return Told(
            provider="stripe",
            id=name,
            type=kind,
            concern=concern,
            object_id=object_id,
            customer_id=object_id if is_customer else found(event, *about, "customer"),
            org_id=org_id if org_id and ID_PATTERN.fullmatch(org_id) else None,
            code=kind if concern == "failed" else None,
            account_id=found(event, "account"),  # only of an account that is connected to ours
            livemode=livemode if isinstance(livemode, bool) else None,
            ours=kind.startswith(_MAY_BE_OURS) and key is not None and key.startswith(OUR_KEYS),
        )

    def _check(self, raw: bytes, signature: str | None) -> None:
        if signature is None or not signature.isascii():
            raise NotGenuineError
        try:
            stripe.WebhookSignature.verify_header(raw, signature, self._secret, TOLERANCE)
        except (stripe.SignatureVerificationError, UnicodeDecodeError):
            raise NotGenuineError from None


def _parsed(raw: bytes) -> dict[str, object]:
    try:
        event = json.loads(raw)
    except (ValueError, RecursionError):
        raise UnreadableError from None
    if not isinstance(event, dict):
        raise UnreadableError
    return event
