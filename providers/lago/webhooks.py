"""Lago's webhooks: genuine by one algorithm that the settings fix, then read for where to look and nothing else.

``hmac`` is a secret of one Lago organization. ``jwt`` is signed with the key of the whole Lago installation, other
organizations' included: there only ``organization_id`` in the signed body tells whose it is. The unique key is in a
header that nobody signs, so a replay under another key costs one look and no more.
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

from core.db.models.inbox import Concern
from core.inbox.provider_webhooks import NotGenuineError, Told, UnreadableError
from core.organizations.validation import ID_PATTERN
from providers.transport.safe_ids import found

SIGNATURE: Final = "X-Lago-Signature"
UNIQUE_KEY: Final = "X-Lago-Unique-Key"

CONCERNS: Final[dict[str, Concern]] = {
    "subscription.started": "began",
    "subscription.updated": "look",
    "subscription.terminated": "ended",
    "subscription.canceled": "look",
    "subscription.incomplete": "look",
    "customer.payment_provider_error": "refused",
    "customer.payment_provider_created": "taken",
    "invoice.payment_failure": "failed",
    "invoice.payment_overdue": "failed",
    "invoice.payment_dispute_lost": "failed",
    "invoice.payment_status_updated": "look",
    "invoice.voided": "look",
    "payment.requires_action": "failed",
    "payment.succeeded": "taken",
}
_CODE = re.compile(r"[A-Za-z0-9_.-]{1,100}")


class Check(Protocol):
    def __call__(self, raw: bytes, signature: str) -> bool: ...


class Hmac:
    """``secret``: the organization's HMAC key, as Lago shows it."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()

    def __call__(self, raw: bytes, signature: str) -> bool:
        wanted = base64.b64encode(hmac.new(self._secret, raw, hashlib.sha256).digest())
        return hmac.compare_digest(wanted, signature.encode())


class Jwt:
    """``public_key``: a PEM, or the base64 of one as Lago answers it. Raises ``ValueError`` for anything else."""

    def __init__(self, public_key: str) -> None:
        pem = public_key.strip().encode()
        if not pem.startswith(b"-----"):
            pem = base64.b64decode(b"".join(pem.split()), validate=True)
        try:
            key = load_pem_public_key(pem)
        except UnsupportedAlgorithm as error:
            raise ValueError(str(error)) from None
        if not isinstance(key, RSAPublicKey):
            message = "it is no RSA key"
            raise ValueError(message)  # noqa: TRY004 - one error for every key that cannot be used
        self._key = key

    def __call__(self, raw: bytes, signature: str) -> bool:
        try:
            claims = jwt.decode(signature, self._key, algorithms=["RS256"], options={"verify_aud": False})
        except jwt.InvalidTokenError:
            return False
        data = claims.get("data")
        return isinstance(data, str) and hmac.compare_digest(data.encode(errors="surrogatepass"), raw)


class LagoWebhooks:
    def __init__(self, check: Check) -> None:
        self._check = check

    def read(self, raw: bytes, signature: str | None, unique_key: str | None) -> Told:
        """Raises ``NotGenuineError``, ``UnreadableError``; neither says what was in it."""
        if signature is None or not signature.isascii() or not self._check(raw, signature):
            raise NotGenuineError
        told = _parsed(raw)
        kind, noun, account = (found(told, name) for name in ("webhook_type", "object_type", "organization_id"))
        name = found({UNIQUE_KEY: unique_key}, UNIQUE_KEY)
        if kind is None or noun is None or account is None or name is None:
            raise UnreadableError
        concern = CONCERNS.get(kind)
        customer = (noun,) if noun == "customer" else (noun, "customer")
        org_id = found(told, noun, "external_customer_id") or found(told, *customer, "external_id")
        return Told(
            provider="lago",
            id=name,
            type=kind,
            concern=concern,
            object_id=found(told, noun, "lago_id") or found(told, noun, "lago_invoice_id"),
            customer_id=found(told, noun, "lago_customer_id") or found(told, *customer, "lago_id"),
            org_id=org_id if org_id and ID_PATTERN.fullmatch(org_id) else None,
            code=_code(told, noun, kind) if concern in {"failed", "refused"} else None,
            account_id=account,
        )


def _parsed(raw: bytes) -> dict[str, object]:
    try:
        told = json.loads(raw)
    except (ValueError, RecursionError):
        raise UnreadableError from None
    if not isinstance(told, dict):
        raise UnreadableError
    return told


def _code(told: dict[str, object], noun: str, otherwise: str) -> str:
    """The payment provider's code; its message may hold names and is not kept."""
    code = found(told, noun, "provider_error", "error_code") or found(told, noun, "provider_error")
    return code if code is not None and _CODE.fullmatch(code) else otherwise
