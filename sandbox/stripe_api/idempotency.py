"""Stripe's idempotency keys (stripe.md 2): POST only, the first response is stored (500s too) and deleted after a day.

A key with other parameters or another endpoint gets 400 ``idempotency_error``; a key that is still in use gets 409.
"""

import hashlib
from urllib.parse import parse_qsl

from sandbox.clock import SandboxClock
from sandbox.http import JsonDocument, ProviderRequest, ProviderResponse
from sandbox.store import SandboxStore
from sandbox.stripe_api.errors import error_response

STORED_RESPONSE_SECONDS = 24 * 3600
MAX_IDEMPOTENCY_KEY_LENGTH = 255


class StripeIdempotencyKeys:
    def __init__(self, store: SandboxStore, clock: SandboxClock) -> None:
        self._stored = store.table("stripe.idempotency")
        self._clock = clock
        self._in_flight: set[str] = set()

    def acquire(self, request: ProviderRequest) -> ProviderResponse | None:
        """The response if the key is stored or in use; None: go on, and ``store`` the response."""
        key = _key(request)
        if key is None:
            return None
        if len(key) > MAX_IDEMPOTENCY_KEY_LENGTH:
            return error_response(400, f"Idempotency keys may be at most {MAX_IDEMPOTENCY_KEY_LENGTH} characters long.")
        self._delete_expired()
        if key in self._in_flight:
            return error_response(
                409,
                f"There is currently another in-progress request using this Idempotent Key ({key[:60]}). Please try "
                "again later.",
                code="idempotency_key_in_use",
            )
        stored = self._stored.get(key)
        if stored is None:
            self._in_flight.add(key)
            return None
        return _replay(key, stored, request)

    def store(self, request: ProviderRequest, response: ProviderResponse) -> None:
        key = _key(request)
        if key is None:
            return
        record: JsonDocument = {
            "path": request.path,
            "fingerprint": _fingerprint(request),
            "status": response.status,
            "body": response.body.decode(),
            "request_id": request.id,
            "at": self._clock.now(),
        }
        self._stored.put(key, record)

    def release(self, request: ProviderRequest) -> None:
        if (key := _key(request)) is not None:
            self._in_flight.discard(key)

    def _delete_expired(self) -> None:
        expired_before = self._clock.now() - STORED_RESPONSE_SECONDS
        while (oldest := self._stored.oldest()) and oldest[1]["at"] <= expired_before:
            self._stored.delete(oldest[0])


def _key(request: ProviderRequest) -> str | None:
    return request.headers.get("idempotency-key") or None if request.method == "POST" else None


def _replay(key: str, stored: JsonDocument, request: ProviderRequest) -> ProviderResponse:
    if stored["path"] != request.path:
        return _mismatch(
            f"Keys for idempotent requests can only be used for the same endpoint they were first used for "
            f"('{stored['path']}' vs '{request.path}'). Try using a key other than '{key}' if you meant to execute a "
            "different request."
        )
    if stored["fingerprint"] != _fingerprint(request):
        return _mismatch(
            "Keys for idempotent requests can only be used with the same parameters they were first used with. "
            f"Try using a key other than '{key}' if you meant to execute a different request."
        )
    headers = (("Idempotent-Replayed", "true"), ("Original-Request", stored["request_id"]))
    return ProviderResponse(stored["status"], stored["body"].encode(), headers)


def _mismatch(message: str) -> ProviderResponse:
    return error_response(400, message, kind="idempotency_error")


def _fingerprint(request: ProviderRequest) -> str:
    pairs = sorted(parse_qsl(request.body.decode(errors="replace"), keep_blank_values=True))
    return hashlib.sha256(repr((request.query, pairs)).encode()).hexdigest()
