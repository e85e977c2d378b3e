"""Parses Stripe's webhooks. The SDK verifies the signature of the raw bytes; the contents are never trusted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

import stripe

from core.db.models.inbox import WebhookEffect
from core.inbox.provider_webhooks import BadSignatureError, MalformedWebhookError, ParsedWebhook
from core.organizations.validation import ORGANIZATION_ID_PATTERN
from providers.stripe.metadata import ORG_ID_KEY
from providers.stripe.state_reader import OUR_IDEMPOTENCY_KEY_PREFIXES
from providers.transport.safe_ids import extract

SIGNATURE_TOLERANCE_SECONDS: Final = 300  # an older signature is a replay
STRIPE_SIGNATURE_HEADER: Final = "Stripe-Signature"

STRIPE_WEBHOOK_EFFECTS: Final[dict[str, WebhookEffect]] = {
    "customer.deleted": "check",
    "customer.subscription.created": "started",
    "customer.subscription.updated": "check",
    "customer.subscription.deleted": "ended",
    "customer.subscription.paused": "check",
    "customer.subscription.resumed": "check",
    "customer.subscription.pending_update_applied": "check",
    "customer.subscription.pending_update_expired": "check",
    "invoice.payment_failed": "payment_failed",
    "invoice.payment_action_required": "payment_failed",
    "invoice.finalization_failed": "payment_failed",
    "invoice.overdue": "payment_failed",
    "invoice.paid": "check",
    "invoice.voided": "check",
    "invoice.marked_uncollectible": "check",
}
# A change that our own request made is known already. A failed payment is news, whoever caused it.
_MAY_BE_OURS_PREFIX: Final = "customer."
_THIN_EVENT_OBJECT: Final = "v2.core.event"


class ThinEventError(MalformedWebhookError):
    """The endpoint in Stripe sends thin payloads, which say which object changed and nothing of it."""


class StripeWebhookParser:
    """``secrets``: the signing secrets of the endpoints, ``whsec_…``; any of them may have signed.

    There are two while a secret is rotated, or if two endpoints of the account lead here.
    """

    def __init__(self, *secrets: str) -> None:
        self._secrets = secrets

    def parse(self, raw: bytes, signature: str | None) -> ParsedWebhook:
        """Raises ``BadSignatureError`` or ``MalformedWebhookError``; neither contains anything of the webhook."""
        self._verify_signature(raw, signature)
        event = _parse_json(raw)
        return parse_event(event)

    def _verify_signature(self, raw: bytes, signature: str | None) -> None:
        if signature is None or not signature.isascii():
            raise BadSignatureError
        if not any(_has_signed(secret, raw, signature) for secret in self._secrets):
            raise BadSignatureError


def _has_signed(secret: str, raw: bytes, signature: str) -> bool:
    try:
        stripe.WebhookSignature.verify_header(raw, signature, secret, SIGNATURE_TOLERANCE_SECONDS)
    except (stripe.SignatureVerificationError, UnicodeDecodeError):
        return False
    return True


def parse_event(event: Mapping[str, object]) -> ParsedWebhook:
    """An event as a webhook or the list of events has it. Raises ``MalformedWebhookError``."""
    event_id, event_type = extract(event, "id"), extract(event, "type")
    if event.get("object") == _THIN_EVENT_OBJECT:
        raise ThinEventError
    if event_id is None or event_type is None:
        raise MalformedWebhookError
    object_path = ("data", "object")
    object_id = extract(event, *object_path, "id")
    is_customer = extract(event, *object_path, "object") == "customer"
    org_id = extract(event, *object_path, "metadata", ORG_ID_KEY)
    idempotency_key = extract(event, "request", "idempotency_key")
    effect = STRIPE_WEBHOOK_EFFECTS.get(event_type)
    livemode = event.get("livemode")
    return ParsedWebhook(
        provider="stripe",
        id=event_id,
        type=event_type,
        effect=effect,
        object_id=object_id,
        customer_id=object_id if is_customer else extract(event, *object_path, "customer"),
        org_id=org_id if org_id and ORGANIZATION_ID_PATTERN.fullmatch(org_id) else None,
        code=event_type if effect == "payment_failed" else None,
        account_id=extract(event, "account"),  # only set for an account that is connected to ours
        livemode=livemode if isinstance(livemode, bool) else None,
        caused_by_us=event_type.startswith(_MAY_BE_OURS_PREFIX)
        and idempotency_key is not None
        and idempotency_key.startswith(OUR_IDEMPOTENCY_KEY_PREFIXES),
    )


def _parse_json(raw: bytes) -> dict[str, object]:
    try:
        event = json.loads(raw)
    except (ValueError, RecursionError):
        raise MalformedWebhookError from None
    if not isinstance(event, dict):
        raise MalformedWebhookError
    return event
