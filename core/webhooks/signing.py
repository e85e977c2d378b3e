"""Secrets of webhook endpoints, and signatures in the form of Standard Webhooks 1.0.

No secret is stored. Each is derived from one setting, the endpoint's id and a generation: whoever has the setting can
sign, and a copy of the database is not enough. A rotation raises the generation. For a day both secrets sign, so that
the subscriber can switch at any time.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import datetime, timedelta
from typing import Final

from core.db.models.webhooks import WebhookEndpoint

SIGNING_SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - what every secret begins with
ROTATION_OVERLAP: Final = timedelta(hours=24)


class Signer:
    """``master_secret`` is the setting: long, random and the same in every process."""

    def __init__(self, master_secret: str) -> None:
        self._master_secret = master_secret.encode()

    def __repr__(self) -> str:
        return "Signer()"

    def secret(self, endpoint_id: str, generation: int) -> str:
        """The secret with which the subscriber verifies."""
        return SIGNING_SECRET_PREFIX + base64.b64encode(self._derive_secret(endpoint_id, generation)).decode()

    def headers(self, endpoint: WebhookEndpoint, message_id: str, body: bytes, now: datetime) -> dict[str, str]:
        """The headers of one attempt: the timestamp is the attempt's, the id is the event's."""
        timestamp = str(int(now.timestamp()))
        signed_content = b".".join((message_id.encode(), timestamp.encode(), body))
        generations = [endpoint.secret_generation]
        if endpoint.rotated_at is not None and now < endpoint.rotated_at + ROTATION_OVERLAP:
            generations.append(endpoint.secret_generation - 1)
        signatures = [_sign(self._derive_secret(endpoint.id, each), signed_content) for each in generations]
        return {"webhook-id": message_id, "webhook-timestamp": timestamp, "webhook-signature": " ".join(signatures)}

    def _derive_secret(self, endpoint_id: str, generation: int) -> bytes:
        return hmac.digest(self._master_secret, f"webhook:{endpoint_id}:{generation}".encode(), hashlib.sha256)


def _sign(secret: bytes, signed_content: bytes) -> str:
    return "v1," + base64.b64encode(hmac.digest(secret, signed_content, hashlib.sha256)).decode()
