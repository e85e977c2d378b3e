"""What a refusing Lago means, in one table: the first row that fits names the error, and what no row knows is rejected.

A message says what was asked for, what to do, and Lago's status, codes and field names. The texts that Lago or
Stripe wrote are never passed on: they can hold a name or an email. Source: lago.md 1.1, 3.5, 5.1, 5.2.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass

from core.errors import MisconfiguredError, ProviderError, RejectedError, ThrottledError, UnavailableError

LONGEST_WAIT = 600.0  # seconds; a longer wish is a moment in epoch seconds or a mistake (Lago's window is one second)

NO_SUCH_ADDRESS = "there is no such address; LAGO_API_URL must be the API's own, without a path"

_WORD = re.compile(r"[A-Za-z0-9_.:-]{1,100}")
_STRIPE_ID = re.compile(r"\b(?:cus|pm|acct|req)_[A-Za-z0-9]{1,60}\b")


@dataclass(frozen=True, slots=True)
class Row:
    """``word`` is Lago's code, or ``field:code`` of a validation; "" fits an answer without any code, None each one."""

    statuses: Container[int]
    word: str | None
    kind: type[ProviderError]
    sentence: str


def _is(status: int) -> Container[int]:
    return (status,)


TABLE: tuple[Row, ...] = (
    Row(
        _is(401),
        "stripe_authentication_failed",
        RejectedError,
        "saved in Lago, but Stripe refuses the key that Lago holds; renew it in Lago's Stripe connection, then retry",
    ),
    Row(_is(401), None, MisconfiguredError, "LAGO_API_KEY is refused; set a key of the right Lago organization"),
    Row(_is(403), None, MisconfiguredError, "LAGO_API_KEY may not do this; widen its permissions (or Lago's licence)"),
    Row(_is(404), "plan_not_found", RejectedError, "Lago has no such plan; run `billing-sync plans push`, then retry"),
    Row(_is(404), "customer_not_found", RejectedError, "Lago has no such customer"),
    Row(_is(404), "subscription_not_found", RejectedError, "Lago has no such subscription"),
    Row(_is(404), "resource_not_found", MisconfiguredError, NO_SUCH_ADDRESS),
    Row(_is(404), "", MisconfiguredError, NO_SUCH_ADDRESS),
    Row(
        range(300, 400),
        None,
        MisconfiguredError,
        "LAGO_API_URL is answered by a redirect; set the address that it leads to",
    ),
    Row(_is(405), "subscription_incomplete", RejectedError, "Lago still waits for its first payment; settle it there"),
    Row(_is(405), None, RejectedError, "Lago does not allow it in the present state"),
    Row(_is(408), None, UnavailableError, "Lago or a proxy before it gave up waiting for the request"),
    Row(_is(422), "lock_acquisition_failed", UnavailableError, "Lago is busy with this customer"),
    Row(
        _is(422),
        "third_party_error",
        RejectedError,
        "saved in Lago, but Stripe refused what Lago then told it; put it right in Lago or Stripe, then retry",
    ),
    Row(_is(422), "provider_error", RejectedError, "the payment provider behind Lago refused"),
    Row(
        _is(422),
        "base:payment_provider_not_found",
        MisconfiguredError,
        "LAGO_STRIPE_PROVIDER_CODE names no Stripe connection of this Lago organization",
    ),
    Row(
        _is(422),
        "base:payment_provider_code_missing",
        MisconfiguredError,
        "Lago has several Stripe connections; set LAGO_STRIPE_PROVIDER_CODE to one of them",
    ),
    Row(
        _is(422),
        "subscription:subscription_incomplete",
        RejectedError,
        "Lago still waits for the first payment of this subscription; settle or cancel it there, then retry",
    ),
    Row(
        _is(422),
        "external_id:value_already_exist",
        RejectedError,
        "the id is taken in Lago, probably by another customer's subscription; look for it there, then retry",
    ),
    Row(_is(422), "validation_errors", RejectedError, "Lago finds fields invalid; correct them, then retry"),
    Row(_is(429), None, ThrottledError, "too many requests"),
    Row(range(500, 600), None, UnavailableError, "Lago or a proxy before it failed"),
)
UNLISTED = Row(range(1000), None, RejectedError, "an unlisted answer, so nothing more is tried; look there, then retry")


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is no success, under its true status. ``body`` is None where it was not JSON."""

    status: int
    body: object
    headers: Mapping[str, str]

    @property
    def words(self) -> tuple[str, ...]:
        """Lago's code and each ``field:code``; a text in place of a code becomes ``field:text``."""
        if not isinstance(self.body, Mapping):
            return ()
        words = [code] if (code := _word(self.body.get("code"))) else []
        if str(self.body.get("error", "")).startswith("Stripe authentication failed"):
            words.append("stripe_authentication_failed")
        details = self.body.get("error_details")
        if isinstance(details, Mapping):
            for field, codes in details.items():
                if isinstance(codes, list):
                    words += [f"{_word(field) or 'field'}:{_word(code) or 'text'}" for code in codes]
        return tuple(words[:20])

    def named(self, about: str) -> ProviderError:
        words = self.words
        fitting = (None, *(words or ("",)))
        row = next((row for row in TABLE if self.status in row.statuses and row.word in fitting), UNLISTED)
        seen = " ".join(
            [str(self.status), *(words or (["not JSON"] if self.body is None else [])), *self._stripe_ids()]
        )
        message = f"{about}: {row.sentence} ({seen})"
        code = words[0] if words else None
        request_id = _word(self.headers.get("x-request-id"))
        if row.kind is ThrottledError:
            return ThrottledError("lago", message, code, request_id, self._retry_after())
        return row.kind("lago", message, code, request_id)

    def _stripe_ids(self) -> list[str]:
        """From Stripe's text only the ids, e.g. the customer that it does not know."""
        details = self.body.get("error_details") if isinstance(self.body, Mapping) else None
        text = details.get("thirdparty_error") if isinstance(details, Mapping) else None
        return _STRIPE_ID.findall(str(text))[:3] if text else []

    def _retry_after(self) -> float | None:
        for header in ("x-ratelimit-reset", "retry-after"):
            try:
                seconds = float(self.headers.get(header, ""))
            except ValueError:
                continue
            if 0 <= seconds <= LONGEST_WAIT:
                return seconds
        return None


def _word(value: object) -> str | None:
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None
