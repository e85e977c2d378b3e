"""The only place that talks to Stripe: one client a process, the lease held before every request, errors named once.

Nothing of the SDK's passes the door outwards: answers become copies (``stripe_answers``), failures become
``core.ports.errors`` (``failures``), raised outside the SDK's own handlers so that no traceback leads back to a body.
"""

from __future__ import annotations

import decimal
import functools
import logging
import uuid
from collections.abc import Callable
from typing import Protocol, TypeVar

import stripe
from pydantic import ValidationError

from core.ports.errors import AmbiguousError
from providers.stripe import errors
from providers.stripe.errors import PROVIDER
from providers.stripe.responses import Answer, Object, Page
from providers.stripe.transport import PooledConnection
from providers.transport.failure_table import Failure
from providers.transport.inline_retry import over_blips

AnswerT = TypeVar("AnswerT", bound=Answer)
ObjectT = TypeVar("ObjectT", bound=Object)

PAGE_SIZE = 100  # the most Stripe gives at once
MAX_CONNECTIONS = 20  # stripe.md 3: at most 20 requests in flight


class Lease(Protocol):
    def hold(self, operation: str) -> None: ...


class NoLease:
    """For reads that concern no organization: prices, the account."""

    def hold(self, operation: str) -> None:  # noqa: ARG002 - nobody counts them
        return


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
        self,
        lease: Lease,
        operation: str,
        doing: str,
        request: Callable[[], stripe.StripeObject],
        answer: type[AnswerT],
    ) -> AnswerT:
        """Send one request and read its answer; ``doing`` completes the sentence "could not …" and holds ids only.

        ``operation`` is what Stripe's limits go by: the method and the path, every id an ``{id}`` (stripe.md 3).
        The callable may run three times, so it must carry its idempotency key with it (``keyed``).
        """

        def attempt() -> AnswerT | Failure:
            lease.hold(operation)
            return self._attempt(doing, request, answer)

        outcome = over_blips(attempt, lambda result: isinstance(result, Failure) and result.is_blip)
        if isinstance(outcome, Failure):
            raise outcome.error()
        return outcome

    def pages(  # noqa: PLR0913, PLR0917 - as for one request
        self,
        lease: Lease,
        operation: str,
        doing: str,
        page: Callable[[str | None], stripe.StripeObject],
        listed: type[Page[ObjectT]],
        most: int,
    ) -> list[ObjectT]:
        """All that a list holds, or ``AmbiguousError``: half of it proves nothing. ``page`` is given the last id."""
        found: list[ObjectT] = []
        for _ in range(most):
            after = found[-1].id if found else None
            answer = self.send(lease, operation, doing, functools.partial(page, after), listed)
            found += answer.data
            if not answer.has_more or not answer.data:
                return found
        message = f"could not {doing}: more than {most * PAGE_SIZE} entries, too many to be sure; look there yourself"
        raise AmbiguousError(PROVIDER, message)

    def close(self) -> None:
        self._connection.close()

    @staticmethod
    def _attempt(doing: str, request: Callable[[], stripe.StripeObject], answer: type[AnswerT]) -> AnswerT | Failure:
        try:
            got = request()
            if not isinstance(got, stripe.StripeObject):
                return errors.ours(doing, "foreign")
            replayed = got.last_response is not None and errors.replayed(got.last_response.headers)
            return answer.model_validate(got.to_dict() | {"replayed": replayed})
        except stripe.StripeError as error:
            return errors.failure(doing, error)
        except (ValidationError, decimal.InvalidOperation):
            return errors.ours(doing, "unreadable")


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
