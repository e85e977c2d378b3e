"""The only place that talks to Stripe: one client a process, the lease held before every request, errors named once.

Nothing of the SDK's passes the door outwards: answers become copies (``stripe_answers``), failures become
``core.errors`` (``stripe_errors``), raised outside the SDK's own handlers so that no traceback leads back to a body.
"""

from __future__ import annotations

import decimal
import functools
import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import stripe
import tenacity
from pydantic import ValidationError

from core.errors import AmbiguousError, ProviderError

from . import stripe_errors
from .stripe_answers import Answer, Object, Page
from .stripe_connection import PooledConnection, Unanswered
from .stripe_errors import PROVIDER, Failure

AnswerT = TypeVar("AnswerT", bound=Answer)
ObjectT = TypeVar("ObjectT", bound=Object)

PAGE_SIZE = 100  # the most Stripe gives at once
MAX_CONNECTIONS = 20  # stripe.md 3: at most 20 requests in flight

# Blips only: three tries that all start within three seconds. Longer waits belong to the queue (design.md 6).
_TRIES = 3
_SECONDS = 3.0
_WAIT = tenacity.wait_exponential(multiplier=0.2, max=1.0) + tenacity.wait_random(0.0, 0.2)


class Lease(Protocol):
    def hold(self) -> None: ...


class NoLease:
    """For reads that concern no organization: prices, the account."""

    def hold(self) -> None:
        return


@dataclass(frozen=True, slots=True)
class _Named:
    error: ProviderError
    blip: bool


class Door:
    """``seconds`` bounds one request from connecting to the last byte. No address has a default: none may reach live
    systems by accident, so all four of the SDK's go to ``api_base``.
    """

    def __init__(self, secret_key: str, api_base: str, seconds: float) -> None:
        base = api_base.rstrip("/")
        if not secret_key:
            message = "the Stripe secret key is empty; set STRIPE_SECRET_KEY"
            raise ValueError(message)
        if not base.startswith(("http://", "https://")):
            message = "Stripe's address must begin with http:// or https://; set STRIPE_API_BASE"
            raise ValueError(message)
        # Else the SDK reports the last call's id and speed with the next and writes an id to the home folder.
        stripe.enable_telemetry = False
        # From INFO on the SDK logs Stripe's sentences and whole bodies: names and addresses (stripe.md 1.7).
        logging.getLogger("stripe").setLevel(logging.WARNING)
        self._connection = PooledConnection(seconds, MAX_CONNECTIONS)
        self.v1 = stripe.StripeClient(
            secret_key,
            max_network_retries=0,
            http_client=self._connection,
            base_addresses={"api": base, "connect": base, "files": base, "meter_events": base},
        ).v1

    def send(
        self, lease: Lease, doing: str, request: Callable[[], stripe.StripeObject], answer: type[AnswerT]
    ) -> AnswerT:
        """Send one request and read its answer; ``doing`` completes the sentence "could not …" and holds ids only.

        The callable may run three times, so it must carry its idempotency key with it (``keyed``).
        """

        def attempt() -> AnswerT | _Named:
            lease.hold()
            return self._attempt(doing, request, answer)

        outcome = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(_TRIES) | tenacity.stop_before_delay(_SECONDS),
            wait=_WAIT,
            retry=tenacity.retry_if_result(lambda result: isinstance(result, _Named) and result.blip),
            retry_error_callback=_last_outcome,
        )(attempt)
        if isinstance(outcome, _Named):
            raise outcome.error
        return outcome

    def pages(
        self,
        lease: Lease,
        doing: str,
        page: Callable[[str | None], stripe.StripeObject],
        listed: type[Page[ObjectT]],
        most: int,
    ) -> list[ObjectT]:
        """All that a list holds, or ``AmbiguousError``: half of it proves nothing. ``page`` is given the last id."""
        found: list[ObjectT] = []
        for _ in range(most):
            after = found[-1].id if found else None
            answer = self.send(lease, doing, functools.partial(page, after), listed)
            found += answer.data
            if not answer.has_more or not answer.data:
                return found
        message = f"could not {doing}: more than {most * PAGE_SIZE} entries, too many to be sure; look there yourself"
        raise AmbiguousError(PROVIDER, message)

    def close(self) -> None:
        self._connection.close()

    @staticmethod
    def _attempt(doing: str, request: Callable[[], stripe.StripeObject], answer: type[AnswerT]) -> AnswerT | _Named:
        try:
            got = request()
            if not isinstance(got, stripe.StripeObject):
                return _Named(*stripe_errors.name(doing, Failure(kind="not_stripe")))
            replayed = got.last_response is not None and _replayed(got.last_response.headers)
            return answer.model_validate(got.to_dict() | {"replayed": replayed})
        except stripe.StripeError as error:
            return _Named(*stripe_errors.name(doing, _failure(error)))
        except (ValidationError, decimal.InvalidOperation):
            return _Named(*stripe_errors.name(doing, Failure(kind="not_stripe")))


def keyed(key: str) -> stripe.RequestOptions:
    """Options with this idempotency key. The SDK replaces an empty one by a random one without a word."""
    if not key:
        message = "an idempotency key is empty"
        raise ValueError(message)
    return {"idempotency_key": key}


def once(operation: str) -> stripe.RequestOptions:
    """A key for this very request. An update carries the whole wish and may be repeated under a new key; one derived
    from its content would replay a stale answer when a name goes from A to B and back.
    """
    return keyed(f"{operation}:{uuid.uuid4().hex}")


def _last_outcome(state: tenacity.RetryCallState) -> _Named:
    outcome = state.outcome.result() if state.outcome else None
    if not isinstance(outcome, _Named):
        message = "tenacity gave up on something that is no failure"
        raise TypeError(message)
    return outcome


def _replayed(headers: Mapping[str, str]) -> bool:
    return headers.get("idempotent-replayed") == "true"


def _failure(error: stripe.StripeError) -> Failure:
    if isinstance(error, Unanswered):
        return Failure(kind=error.silence)
    headers = {key.lower(): value for key, value in (error.headers or {}).items()}
    body = error.error
    if body is None:
        return Failure(status=error.http_status, kind="not_stripe", request_id=error.request_id)
    code = error.code or getattr(body, "code", None)
    return Failure(
        status=error.http_status,
        kind=_kind(code, getattr(body, "type", None)),
        code=code,
        param=getattr(body, "param", None),
        request_id=error.request_id,
        limiter=headers.get("stripe-rate-limited-reason"),
        retry_after=_seconds(headers.get("retry-after")),
        replayed=_replayed(headers),
    )


def _kind(code: str | None, its_type: str | None) -> str | None:
    """The words that Stripe's answer holds only by type, by a family of codes, or by the lack of one."""
    if its_type == stripe_errors.KEY_REUSED:
        return stripe_errors.KEY_REUSED
    if code is None and its_type == "invalid_request_error":
        return "no_code"
    return "parameter_invalid" if code and code.startswith("parameter_invalid") else None


def _seconds(header: str | None) -> float | None:
    """Stripe documents no Retry-After; a proxy before it may send one, and then it counts."""
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None
