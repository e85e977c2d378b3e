"""Stripe's idempotency keys as stripe.md 2 has them: POST only, first answer kept (500s too), forgotten after a day.

Refused in words clients know: other parameters or another endpoint 400 ``idempotency_error``, still in flight 409.
"""

import hashlib
from urllib.parse import parse_qsl

from sandbox.clock import Clock
from sandbox.http import Answer, Doc, Request
from sandbox.store import Store
from sandbox.stripe_api.errors import error

KEPT_SECONDS = 24 * 3600
LONGEST_KEY = 255


class IdempotencyKeys:
    def __init__(self, store: Store, clock: Clock) -> None:
        self._kept = store.table("stripe.idempotency")
        self._clock = clock
        self._in_flight: set[str] = set()

    def claim(self, request: Request) -> Answer | None:
        """The answer for a key that is known or in use; None: go on and ``keep`` the answer."""
        key = _key(request)
        if key is None:
            return None
        if len(key) > LONGEST_KEY:
            return error(400, f"Idempotency keys may be at most {LONGEST_KEY} characters long.")
        self._forget()
        if key in self._in_flight:
            return error(
                409,
                f"There is currently another in-progress request using this Idempotent Key ({key[:60]}). Please try "
                "again later.",
                code="idempotency_key_in_use",
            )
        kept = self._kept.get(key)
        if kept is None:
            self._in_flight.add(key)
            return None
        return _known(key, kept, request)

    def keep(self, request: Request, answer: Answer) -> None:
        key = _key(request)
        if key is None:
            return
        record: Doc = {
            "path": request.path,
            "fingerprint": _fingerprint(request),
            "status": answer.status,
            "body": answer.body.decode(),
            "request_id": request.id,
            "at": self._clock.now(),
        }
        self._kept.put(key, record)

    def release(self, request: Request) -> None:
        if (key := _key(request)) is not None:
            self._in_flight.discard(key)

    def _forget(self) -> None:
        edge = self._clock.now() - KEPT_SECONDS
        while (oldest := self._kept.oldest()) and oldest[1]["at"] <= edge:
            self._kept.drop(oldest[0])


def _key(request: Request) -> str | None:
    return request.headers.get("idempotency-key") or None if request.method == "POST" else None


def _known(key: str, kept: Doc, request: Request) -> Answer:
    if kept["path"] != request.path:
        return _mismatch(
            f"Keys for idempotent requests can only be used for the same endpoint they were first used for "
            f"('{kept['path']}' vs '{request.path}'). Try using a key other than '{key}' if you meant to execute a "
            "different request."
        )
    if kept["fingerprint"] != _fingerprint(request):
        return _mismatch(
            "Keys for idempotent requests can only be used with the same parameters they were first used with. "
            f"Try using a key other than '{key}' if you meant to execute a different request."
        )
    headers = (("Idempotent-Replayed", "true"), ("Original-Request", kept["request_id"]))
    return Answer(kept["status"], kept["body"].encode(), headers)


def _mismatch(message: str) -> Answer:
    return error(400, message, kind="idempotency_error")


def _fingerprint(request: Request) -> str:
    pairs = sorted(parse_qsl(request.body.decode(errors="replace"), keep_blank_values=True))
    return hashlib.sha256(repr((request.query, pairs)).encode()).hexdigest()
