"""A failed call to Stripe as the table of failures wants it: status, words, ids (stripe.md 1.9), nothing of the SDK.

Stripe's own text repeats values (an address, a name), so of its answer only ``code``, ``param``, the status and the
request id are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import stripe

from providers.stripe.transport import Unanswered
from providers.transport.failure_table import Failure

PROVIDER: Final = "stripe"

MISSING = "resource_missing"
KEY_REUSED = "idempotency_error"
REASON: Final = "stripe-rate-limited-reason"


def failure(doing: str, error: stripe.StripeError) -> Failure:
    """``doing`` completes the sentence "could not …" and holds ids only."""
    if isinstance(error, Unanswered):
        return ours(doing, error.silence)
    body = error.error
    if body is None:
        return _failure(doing, ("foreign",), status=error.http_status, request_id=error.request_id)
    headers = {key.lower(): value for key, value in (error.headers or {}).items()}
    code: str | None = error.code or getattr(body, "code", None)
    words = _words(code, getattr(body, "type", None), headers)
    return _failure(
        doing,
        words,
        status=error.http_status,
        code=headers.get(REASON) or code or next(iter(words), None),
        param=getattr(body, "param", None),
        request_id=error.request_id,
        retry_after=_seconds(headers.get("retry-after")),
    )


def ours(doing: str, word: str) -> Failure:
    """A failure for which we have the only word: no answer, or one that is not Stripe's or cannot be read."""
    return _failure(doing, (word,))


def _failure(  # noqa: PLR0913 - one line a field
    doing: str,
    words: tuple[str, ...],
    *,
    status: int | None = None,
    code: str | None = None,
    param: str | None = None,
    request_id: str | None = None,
    retry_after: float | None = None,
) -> Failure:
    cause = words[0] if status is None else None
    details = (("param", param), ("code", code), ("status", status), ("cause", cause))
    return Failure(
        provider=PROVIDER,
        about=f"could not {doing}",
        words=words,
        seen=", ".join(f"{label} {value}" for label, value in details if value),
        status=status,
        code=code or next(iter(words), None),
        request_id=request_id,
        retry_after=retry_after,
    )


def _words(code: str | None, its_type: str | None, headers: Mapping[str, str]) -> tuple[str, ...]:
    """Stripe's code, why it was too fast, and our words for what it says by type, by header, or by naming no code."""
    said = {
        KEY_REUSED: its_type == KEY_REUSED,
        "saved_failure": replayed(headers),
        "not_to_be_repeated": headers.get("stripe-should-retry") == "false",
        "no_code": code is None and its_type == "invalid_request_error",
    }
    reason = headers.get(REASON)
    named = [word for word in (code, reason) if word]
    return (*named, *(word for word, is_so in said.items() if is_so))


def replayed(headers: Mapping[str, str]) -> bool:
    return headers.get("idempotent-replayed") == "true"


def _seconds(header: str | None) -> float | None:
    """Stripe documents no Retry-After; a proxy before it may send one, and then it counts."""
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None
