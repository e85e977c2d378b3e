"""Stripe's failures, named once, as one table (stripe.md 1.9); what is not in it is refused, never retried blindly.

The sentences are ours: Stripe's own text repeats values (an address, a name), so of its answer only ``code``,
``param``, the status and the request id are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import MisconfiguredError, ProviderError, RejectedError, ThrottledError, UnavailableError

PROVIDER = "stripe"

SAVED_FAILURE = "saved_failure"
"""Our word for a 5xx that Stripe replays under its key: it comes back for ever, so look before sending anew."""


MISSING = "resource_missing"
KEY_REUSED = "idempotency_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What the table decides by. ``status`` is None without an answer; ``kind`` is our word where Stripe has none."""

    status: int | None = None
    kind: str | None = None
    code: str | None = None
    param: str | None = None
    request_id: str | None = None
    limiter: str | None = None
    retry_after: float | None = None
    replayed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row fits when the status and the code (or kind) are among its own; None fits all.

    ``blip`` failures may be over within a second, and repeating the request is proven harmless.
    """

    error: type[ProviderError]
    says: str
    statuses: frozenset[int] | None = None
    words: frozenset[str] | None = None
    replayed: bool | None = None
    blip: bool = False
    code: str | None = None

    def fits(self, failure: Failure) -> bool:
        return (
            (self.statuses is None or failure.status in self.statuses)
            and (self.words is None or bool(self.words & {failure.code, failure.kind}))
            and (self.replayed is None or self.replayed == failure.replayed)
        )


def _on(*statuses: int) -> frozenset[int]:
    return frozenset(statuses)


def _word(*words: str) -> frozenset[str]:
    return frozenset(words)


_SERVER_FAULTS = frozenset(range(500, 600))

# The first row that fits names the failure.
TABLE: tuple[Row, ...] = (
    Row(
        words=_word("tls"),
        error=MisconfiguredError,
        says="TLS to Stripe failed; check STRIPE_API_BASE, the certificate authorities and the clock",
    ),
    Row(words=_word("not_sent"), error=UnavailableError, says="no connection to Stripe, nothing was sent", blip=True),
    Row(words=_word("no_answer"), error=UnavailableError, says="no answer from Stripe, the outcome is unknown"),
    Row(
        words=_word("lock_timeout"),
        error=UnavailableError,
        says="another request holds this object at Stripe",
        blip=True,
    ),
    Row(statuses=_on(429), error=ThrottledError, says="too many requests"),
    Row(words=_word("rate_limit"), error=ThrottledError, says="too many requests"),
    Row(
        words=_word("idempotency_key_in_use"),
        error=UnavailableError,
        says="the same request is still being worked on",
        blip=True,
    ),
    Row(statuses=_on(409), error=UnavailableError, says="another request is in the way", blip=True),
    Row(words=_word(KEY_REUSED), error=RejectedError, says="the idempotency key was used for another request"),
    Row(
        words=_word("livemode_mismatch", "testmode_charges_only"),
        error=MisconfiguredError,
        says="the key and the object are of different modes (live and test); check STRIPE_SECRET_KEY",
    ),
    Row(statuses=_on(401), error=MisconfiguredError, says="Stripe does not accept the key; check STRIPE_SECRET_KEY"),
    Row(statuses=_on(403), error=MisconfiguredError, says="the key may not do this; give STRIPE_SECRET_KEY the right"),
    Row(statuses=_on(402), error=RejectedError, says="the payment was declined; the customer must act"),
    Row(
        words=_word(MISSING),
        error=RejectedError,
        says="Stripe does not know this object; it is another account's or mode's, or was deleted",
    ),
    Row(words=_word("resource_already_exists"), error=RejectedError, says="it exists already"),
    Row(
        words=_word("invalid_canceled_subscription_fields"),
        error=RejectedError,
        says="the subscription has ended and cannot be changed",
    ),
    Row(
        words=_word("customer_max_subscriptions"),
        error=RejectedError,
        says="the customer has as many subscriptions as Stripe allows; look for duplicates there",
    ),
    Row(
        words=_word("email_invalid"),
        error=RejectedError,
        says="the email address is not valid; correct the organization's billing email",
    ),
    Row(
        words=_word(
            "parameter_invalid",
            "parameter_missing",
            "parameter_unknown",
            "parameters_exclusive",
            "url_invalid",
            "no_code",
        ),
        error=RejectedError,
        says="Stripe refuses the request; correct the field it names",
    ),
    Row(
        statuses=_SERVER_FAULTS,
        replayed=True,
        error=UnavailableError,
        says="Stripe repeats a saved failure",
        code=SAVED_FAILURE,
    ),
    Row(statuses=_SERVER_FAULTS | {424}, error=UnavailableError, says="Stripe, or what it depends on, fails"),
    Row(
        words=_word("not_stripe"),
        error=MisconfiguredError,
        says="this is not Stripe's API, perhaps a proxy's page; check STRIPE_API_BASE",
    ),
)

UNLISTED = Row(error=RejectedError, says="Stripe refuses in a way that is not listed here; look the request up there")


def name(doing: str, failure: Failure) -> tuple[ProviderError, bool]:
    """The error to raise, and whether it is a blip. ``doing`` ends "could not …" and holds ids only."""
    row = next((row for row in TABLE if row.fits(failure)), UNLISTED)
    details = [
        f"{label} {value}"
        for label, value in (
            ("param", failure.param),
            ("code", failure.code),
            ("status", failure.status),
            ("cause", failure.kind if failure.status is None else None),
        )
        if value
    ]
    message = f"could not {doing}: {row.says} ({', '.join(details)})"
    if row.error is ThrottledError:
        code = failure.limiter or failure.code
        return ThrottledError(PROVIDER, message, code, failure.request_id, failure.retry_after), row.blip
    return row.error(PROVIDER, message, row.code or failure.code or failure.kind, failure.request_id), row.blip
