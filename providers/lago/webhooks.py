"""Parses Lago's webhooks. The settings fix the one algorithm that verifies them; the contents are never trusted.

``hmac`` uses a secret of one Lago organization. ``jwt`` is signed with the key of the whole Lago installation, other
organizations included, so only ``organization_id`` in the signed body shows whose webhook it is. The unique key is in
a header that is not signed, so a replay under another key costs one remote check and nothing more.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from typing import Final, Protocol

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from core.db.models.inbox import WebhookEffect
from core.inbox.provider_webhooks import BadSignatureError, MalformedWebhookError, ParsedWebhook
from core.organizations.validation import ORGANIZATION_ID_PATTERN
from providers.transport.safe_ids import extract, extract_outside_id

LAGO_SIGNATURE_HEADER: Final = "X-Lago-Signature"
LAGO_UNIQUE_KEY_HEADER: Final = "X-Lago-Unique-Key"

LAGO_WEBHOOK_EFFECTS: Final[dict[str, WebhookEffect]] = {
    "subscription.started": "started",
    "subscription.updated": "check",
    "subscription.terminated": "ended",
    "subscription.canceled": "check",
    "subscription.incomplete": "check",
    "subscription.termination_alert": "check",
    "customer.updated": "payer_reported",
    "customer.payment_provider_error": "payer_rejected",
    "customer.payment_provider_created": "payer_accepted",
    "invoice.payment_failure": "payment_failed",
    "invoice.payment_overdue": "payment_failed",
    "invoice.payment_dispute_lost": "payment_failed",
    "invoice.payment_status_updated": "check",
    "invoice.voided": "check",
    "payment.requires_action": "payment_failed",
    "payment.succeeded": "payer_accepted",
}
# Where the object is, if not directly under its type (lago.md 8).
_OBJECT_PATHS: Final[dict[str, tuple[str, ...]]] = {"payment_dispute_lost": ("payment_dispute_lost", "invoice")}
_PAYMENT_ERROR_CODE = re.compile(r"[A-Za-z0-9_.-]{1,100}")


class SignatureCheck(Protocol):
    def __call__(self, raw: bytes, signature: str) -> bool: ...


class HmacCheck:
    """``secret`` is the organization's HMAC key, as Lago shows it."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()

    def __call__(self, raw: bytes, signature: str) -> bool:
        expected = base64.b64encode(hmac.new(self._secret, raw, hashlib.sha256).digest())
        return hmac.compare_digest(expected, signature.encode())


class JwtCheck:
    """``public_key`` is a PEM, or the base64 of one as Lago returns it. Raises ``ValueError`` for anything else."""

    def __init__(self, public_key: str) -> None:
        pem = public_key.strip().encode()
        if not pem.startswith(b"-----"):
            pem = base64.b64decode(b"".join(pem.split()), validate=True)
        try:
            key = load_pem_public_key(pem)
        except UnsupportedAlgorithm as error:
            raise ValueError(str(error)) from None
        if not isinstance(key, RSAPublicKey):
            message = "the key is not an RSA key"
            raise ValueError(message)  # noqa: TRY004 - one error class for every unusable key
        self._key = key

    def __call__(self, raw: bytes, signature: str) -> bool:
        try:
            claims = jwt.decode(signature, self._key, algorithms=["RS256"], options={"verify_aud": False})
        except jwt.InvalidTokenError:
            return False
        data = claims.get("data")
        return isinstance(data, str) and hmac.compare_digest(data.encode(errors="surrogatepass"), raw)


class LagoWebhookParser:
    def __init__(self, check: SignatureCheck) -> None:
        self._signature_check = check

    def parse(self, raw: bytes, signature: str | None, unique_key: str | None) -> ParsedWebhook:
        """Raises ``BadSignatureError`` or ``MalformedWebhookError``; neither contains anything of the webhook."""
        if signature is None or not signature.isascii() or not self._signature_check(raw, signature):
            raise BadSignatureError
        payload = _parse_json(raw)
        webhook_type, object_type, account_id = (
            extract(payload, name) for name in ("webhook_type", "object_type", "organization_id")
        )
        webhook_id = extract({LAGO_UNIQUE_KEY_HEADER: unique_key}, LAGO_UNIQUE_KEY_HEADER)
        if webhook_type is None or object_type is None or account_id is None or webhook_id is None:
            raise MalformedWebhookError
        effect = LAGO_WEBHOOK_EFFECTS.get(webhook_type)
        object_path = _OBJECT_PATHS.get(object_type, (object_type,))
        customer_path = object_path if object_type == "customer" else (*object_path, "customer")
        external_id = extract_outside_id(payload, object_type, "external_customer_id") or extract_outside_id(
            payload, *customer_path, "external_id"
        )
        return ParsedWebhook(
            provider="lago",
            id=webhook_id,
            type=webhook_type,
            effect=effect,
            object_id=_object_id(payload, object_type, object_path, effect),
            customer_id=extract(payload, object_type, "lago_customer_id")
            or extract(payload, *customer_path, "lago_id"),
            org_id=external_id if external_id and ORGANIZATION_ID_PATTERN.fullmatch(external_id) else None,
            external_customer_id=external_id,
            code=_payment_error_code(payload, object_type, webhook_type)
            if effect in {"payment_failed", "payer_rejected"}
            else None,
            account_id=account_id,
        )


def _parse_json(raw: bytes) -> dict[str, object]:
    try:
        payload = json.loads(raw)
    except (ValueError, RecursionError):
        raise MalformedWebhookError from None
    if not isinstance(payload, dict):
        raise MalformedWebhookError
    return payload


def _object_id(
    payload: dict[str, object], object_type: str, object_path: tuple[str, ...], effect: WebhookEffect | None
) -> str | None:
    """Of a report about the payer, the payer's id; ``None``: Lago charges nobody."""
    if effect == "payer_reported":
        return extract(payload, *object_path, "billing_configuration", "provider_customer_id")
    return extract(payload, *object_path, "lago_id") or extract(payload, object_type, "lago_invoice_id")


def _payment_error_code(payload: dict[str, object], object_type: str, fallback: str) -> str:
    """The payment provider's code. Its message is not kept, because it may contain names."""
    code = extract(payload, object_type, "provider_error", "error_code") or extract(
        payload, object_type, "provider_error"
    )
    return code if code is not None and _PAYMENT_ERROR_CODE.fullmatch(code) else fallback
