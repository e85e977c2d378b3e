"""Errors of the providers, sorted by what to do next. Nothing else leaves ``providers/``.

ProviderError
    RetryableError      the same request may succeed later
        UnavailableError    no response, or one that says nothing about our request (5xx, a proxy's page)
        ThrottledError      too many requests; ``retry_after`` seconds if the provider named a wait
            ObjectThrottledError    too many requests to one object: only its organization waits
        NotYetAllowedError  the provider allows it only after something of its own, such as a payment that is pending
        OutcomeUnknownError the idempotency key returns the same response that proves nothing: read, then use a new key
        MisconfiguredError  our key, address or permission: every organization fails until an operator acts
        UnexpectedError     a program raised what nobody named: retried a few times, then the link is parked
    ParkedError         repeating cannot help: an operator must act on this organization
        RejectedError       the provider rejects the request, or has something that we must not touch
            WriteRefusedError   we do not send a request that writes: observe mode
        AmbiguousError      we cannot prove what exists at the provider; going on could create a second customer
    ConflictError       somebody changed at the provider what we charge: an operator decides (`billing-sync resolve`)
    PaymentBrakeError    too many changes of what is paid: an operator lets it go or not (`billing-sync brake`)

``LeaseLostError`` is not about the provider: another worker has the lease, so this one ends. Nor is ``MustWaitError``:
the request may not be sent now, so the attempt is made later.

Every argument goes to ``args``, because Celery and pickle rebuild errors from it. Messages are shown to users and
operators, and contain ids only: no key, no name, no email.

``kind`` is stored with the link, shown, and typed (``retry --error``). It stays when a class is renamed.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from core.ports.arrangement import Arrangement

ErrorKind = Literal[
    "unavailable",
    "throttled",
    "not_yet_allowed",
    "outcome_unknown",
    "misconfigured",
    "rejected",
    "ambiguous",
    "conflict",
    "unexpected",
    "payment_brake",
]


class ProviderError(Exception):
    """``code`` is the provider's own error code (``resource_missing``). Its support asks for the ``request_id``."""

    kind: ClassVar[ErrorKind]

    def __init__(self, provider: str, message: str, code: str | None = None, request_id: str | None = None) -> None:
        super().__init__(provider, message, code, request_id)
        self.provider = provider
        self.message = message
        self.code = code
        self.request_id = request_id

    def __str__(self) -> str:
        return f"{self.provider}: {self.message}"


class RetryableError(ProviderError):
    pass


class UnavailableError(RetryableError):
    kind = "unavailable"


class RetryLaterError(RetryableError):
    """``retry_after``: seconds after which it is worth another try; None: a growing wait."""

    def __init__(
        self,
        provider: str,
        message: str,
        code: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(provider, message, code, request_id)
        self.args = (provider, message, code, request_id, retry_after)
        self.retry_after = retry_after


class ThrottledError(RetryLaterError):
    kind = "throttled"


class ObjectThrottledError(ThrottledError):
    pass


class NotYetAllowedError(RetryLaterError):
    kind = "not_yet_allowed"


class OutcomeUnknownError(RetryableError):
    kind = "outcome_unknown"


class MisconfiguredError(RetryableError):
    kind = "misconfigured"


class UnexpectedError(RetryableError):
    kind = "unexpected"


class ParkedError(ProviderError):
    pass


class RejectedError(ParkedError):
    kind = "rejected"


class WriteRefusedError(RejectedError):
    pass


class AmbiguousError(ParkedError):
    kind = "ambiguous"


class ConflictError(ProviderError):
    """Somebody changed at the provider what we charge, whom, or by whom. The message says what, and the ways out."""

    kind = "conflict"

    def __init__(
        self,
        provider: str,
        message: str,
        code: str | None = None,
        request_id: str | None = None,
        arrangement: Arrangement | None = None,
    ) -> None:
        """``arrangement``: what the subscription has at the provider, if that is the conflict."""
        super().__init__(provider, message, code, request_id)
        self.args = (provider, message, code, request_id, arrangement)
        self.arrangement = arrangement


class PaymentBrakeError(ProviderError):
    """The payment brake holds a change of what somebody pays, before anything of it was sent."""

    kind = "payment_brake"


class LeaseLostError(Exception):
    """The lease expired or was taken over; the attempt may not send or write anything any more."""


class OlderCustomerFoundError(Exception):
    """The provider has a customer under the organization's id from before our link, so we did not make it."""

    def __init__(self, customer_id: str) -> None:
        super().__init__(customer_id)
        self.customer_id = customer_id


class MustWaitError(Exception):
    """``reserved``: there is a reservation for ``retry_after`` seconds from now. If not, ask again after that time."""

    def __init__(self, retry_after: float, *, reserved: bool) -> None:
        super().__init__(retry_after, reserved)
        self.retry_after = retry_after
        self.reserved = reserved
