"""A failed call to Stripe in the terms of the failure table: status, codes and ids (stripe.md 1.9).

Stripe's own text repeats values such as an address or a name. Only ``code``, ``param``, the status and the request id
of its response are kept, and nothing of the SDK's. Of a 403 the names of the missing rights are kept, too, and of one
about the account the account's id: only the text has them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import stripe

from providers.stripe.transport import NoAnswerError
from providers.transport.failure_table import Failure

STRIPE: Final = "stripe"

RESOURCE_MISSING = "resource_missing"
# Our codes for a rejected request whose response has none: it names a field, it names none, or its text is known.
NO_CODE: Final = "no_code"
NO_FIELD: Final = "no_field"
MISSING_EMAIL: Final = "missing_email"
# A part of Stripe's text, which repeats no value, and our code for it (stripe.md 1.9).
_KNOWN_TEXTS: Final[Mapping[str, str]] = {
    "Missing email": MISSING_EMAIL,
    "price specified is inactive": "inactive_price",
    "Stripe-Context": "missing_context",
    "no attached payment source or default payment method": "missing_payment_method",
}
IDEMPOTENCY_KEY_REUSED = "idempotency_error"
MISSING_PERMISSION: Final = "missing_permission"
RATE_LIMITED_REASON_HEADER: Final = "stripe-rate-limited-reason"

_FORBIDDEN: Final = 403
# Without these no organization can be synced. Any other right is needed by some of them only.
_NEEDED_BY_ALL: Final = frozenset({"account", "customers", "subscriptions"})
_RIGHT: Final = re.compile(r"'([a-z][a-z_]{0,80}_(?:read|write))'")
_MAX_RIGHTS_SHOWN = 5
_REFUSED_ACCOUNT: Final = re.compile(r"permissions for this endpoint on account '(acct_\w{1,80})'")


def to_failure(purpose: str, error: stripe.StripeError, operation: str) -> Failure:
    """``purpose`` completes the sentence "could not …" and contains ids only. ``operation``: ``POST /v1/customers``."""
    if isinstance(error, NoAnswerError):
        return failure_with_code(purpose, error.kind)
    body = error.error
    if body is None:
        return _new_failure(purpose, ("foreign",), status=error.http_status, request_id=error.request_id)
    headers = {key.lower(): value for key, value in (error.headers or {}).items()}
    code: str | None = error.code or getattr(body, "code", None)
    codes = _codes(code, getattr(body, "type", None), headers)
    if NO_CODE in codes:
        codes = (_code_by_text(body), *(each for each in codes if each != NO_CODE))
    permission = None
    if error.http_status == _FORBIDDEN:
        text = str(getattr(body, "message", ""))
        permission = " or ".join(_RIGHT.findall(text)[:_MAX_RIGHTS_SHOWN]) or None
        if "permission" in text:
            code = MISSING_PERMISSION
            codes = codes if _resource(operation) in _NEEDED_BY_ALL else (MISSING_PERMISSION,)
    return _new_failure(
        purpose,
        codes,
        status=error.http_status,
        code=headers.get(RATE_LIMITED_REASON_HEADER) or code or next(iter(codes), None),
        param=getattr(body, "param", None),
        permission=permission,
        request_id=error.request_id,
        retry_after=_retry_after_seconds(headers.get("retry-after")),
    )


def account_of_refusal(refused: stripe.PermissionError) -> str | None:
    """The account of a key that lacks a right, by Stripe's sentence (stripe.md 1.9). ``None``: it names none."""
    found = _REFUSED_ACCOUNT.search(str(refused.user_message or ""))
    return found[1] if found else None


def failure_with_code(purpose: str, code: str) -> Failure:
    """A failure for which only we have a code: no response, or one that is not Stripe's or cannot be parsed."""
    return _new_failure(purpose, (code,))


def _new_failure(  # noqa: PLR0913 - one argument for each field
    purpose: str,
    codes: tuple[str, ...],
    *,
    status: int | None = None,
    code: str | None = None,
    param: str | None = None,
    permission: str | None = None,
    request_id: str | None = None,
    retry_after: float | None = None,
) -> Failure:
    cause = codes[0] if status is None else None
    details = (("permission", permission), ("param", param), ("code", code), ("status", status), ("cause", cause))
    return Failure(
        provider=STRIPE,
        context=f"could not {purpose}",
        codes=codes,
        details=", ".join(f"{label} {value}" for label, value in details if value),
        status=status,
        code=code or next(iter(codes), None),
        request_id=request_id,
        retry_after=retry_after,
    )


def _codes(code: str | None, error_type: str | None, headers: Mapping[str, str]) -> tuple[str, ...]:
    """Stripe's code and rate-limit reason, and our codes for what it shows by a type, a header or a missing code."""
    conditions = {
        IDEMPOTENCY_KEY_REUSED: error_type == IDEMPOTENCY_KEY_REUSED,
        "saved_failure": is_replayed(headers),
        "not_to_be_repeated": headers.get("stripe-should-retry") == "false",
        NO_CODE: code is None and error_type == "invalid_request_error",
    }
    reason = headers.get(RATE_LIMITED_REASON_HEADER)
    stated = [each for each in (code, reason) if each]
    return (*stated, *(each for each, applies in conditions.items() if applies))


def _code_by_text(body: object) -> str:
    text = str(getattr(body, "message", ""))
    known = next((code for part, code in _KNOWN_TEXTS.items() if part in text), None)
    return known or (NO_CODE if getattr(body, "param", None) else NO_FIELD)


def _resource(operation: str) -> str:
    """``credit_notes`` of ``POST /v1/credit_notes``."""
    return operation.partition("/v1/")[2].partition("/")[0]


def is_replayed(headers: Mapping[str, str]) -> bool:
    return headers.get("idempotent-replayed") == "true"


def _retry_after_seconds(header: str | None) -> float | None:
    """Stripe documents no Retry-After. A proxy in front of it may send one, and then it is used."""
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None
