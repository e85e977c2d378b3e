"""Secrets of webhook endpoints, and signatures by them in the form of Standard Webhooks 1.0.

No secret is stored: each is derived from one setting, the endpoint's id and a generation, so whoever has the setting
can sign and a copy of the database cannot. A rotation raises the generation; for a day both secrets sign, so that the
other side may change over when it likes.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import datetime, timedelta
from typing import Final

from core.db.models.webhooks import WebhookEndpoint

PREFIX: Final = "whsec_"
BOTH_SIGN_FOR: Final = timedelta(hours=24)


class Signer:
    """``key`` is the setting: long and random, the same in every process."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    def __repr__(self) -> str:
        return "Signer()"

    def secret(self, endpoint_id: str, generation: int) -> str:
        """What the other side verifies with."""
        return PREFIX + base64.b64encode(self._derived(endpoint_id, generation)).decode()

    def headers(self, endpoint: WebhookEndpoint, message_id: str, body: bytes, now: datetime) -> dict[str, str]:
        """Of one try: the timestamp is its own, the id is the message's."""
        stamp = str(int(now.timestamp()))
        signed = b".".join((message_id.encode(), stamp.encode(), body))
        generations = [endpoint.generation]
        if endpoint.rotated_at is not None and now < endpoint.rotated_at + BOTH_SIGN_FOR:
            generations.append(endpoint.generation - 1)
        signatures = [_signature(self._derived(endpoint.id, each), signed) for each in generations]
        return {"webhook-id": message_id, "webhook-timestamp": stamp, "webhook-signature": " ".join(signatures)}

    def _derived(self, endpoint_id: str, generation: int) -> bytes:
        return hmac.digest(self._key, f"webhook:{endpoint_id}:{generation}".encode(), hashlib.sha256)


def _signature(secret: bytes, signed: bytes) -> str:
    return "v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()
