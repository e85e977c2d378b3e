"""What can go wrong at a biller, sorted by what to do next. Nothing else leaves ``providers/``.

ProviderError
    RetryableError      the same work, later, may succeed
        UnavailableError    no answer, or an answer that says nothing about our request (5xx, a proxy's page)
        ThrottledError      too fast; ``retry_after`` seconds when the biller named a wait
            ObjectThrottledError    one object too often: its organization waits, and nobody else
        UnsettledError      an answer that a key keeps for ever and that proves nothing: look there, then send anew
        MisconfiguredError  our key, address or permission: every organization fails alike until a person acts
    ParkedError         repeating cannot help: a person must act on this organization
        RejectedError       the biller refuses what we ask, or holds something that we must not touch
        AmbiguousError      we cannot prove what exists there; going on could make a second customer

LeaseLostError is not about the biller: another worker owns the organization now, so this one stops. Nor is
MustWaitError: a request may not be sent or judged by now, so the turn comes back later.

Every argument goes to ``args``: Celery and pickle rebuild errors from it. Messages are shown to people and
must hold ids only: no key, no name, no email.

``kind`` is stored with the link, shown, and typed (``retry --error``): it stays when a class is renamed.
"""

from __future__ import annotations

from typing import ClassVar, Literal

ErrorKind = Literal["unavailable", "throttled", "outcome_unknown", "misconfigured", "rejected", "ambiguous"]


class ProviderError(Exception):
    """``code`` is the biller's own word (``resource_missing``), ``request_id`` what its support asks for."""

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


class ThrottledError(RetryableError):
    kind = "throttled"

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


class ObjectThrottledError(ThrottledError):
    pass


class OutcomeUnknownError(RetryableError):
    kind = "outcome_unknown"


class MisconfiguredError(RetryableError):
    kind = "misconfigured"


class ParkedError(ProviderError):
    pass


class RejectedError(ParkedError):
    kind = "rejected"


class AmbiguousError(ParkedError):
    kind = "ambiguous"


class LeaseLostError(Exception):
    """The lease ran out or was taken; nothing may be sent or written for this organization any more."""


class NoPermitError(Exception):
    """``reserved``: a place is kept that comes up after ``seconds``. If not, no place is to be had before then."""

    def __init__(self, retry_after: float, *, reserved: bool) -> None:
        super().__init__(retry_after, reserved)
        self.retry_after = retry_after
        self.reserved = reserved
