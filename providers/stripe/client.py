"""HTTP client for Stripe, one per process. Every request to Stripe goes through it, and first through its guard.

The guard of a sync attempt checks the lease and the rate limit. Nothing of the SDK's is passed on: responses become
copies (``providers.stripe.responses``), and failures become ``core.ports.errors`` by the failure table. They are raised
outside the SDK's own handlers, so that no traceback leads to a body.
"""

from __future__ import annotations

import decimal
import functools
import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping
from typing import TypeVar

import stripe
from pydantic import ValidationError

from core.common.json_types import Json
from core.ports.errors import AmbiguousError, RejectedError
from core.ports.provider import RequestPermits
from providers.stripe import errors
from providers.stripe.errors import STRIPE
from providers.stripe.responses import StripeModel, StripePage, StripeResource
from providers.stripe.transport import PooledTransport
from providers.transport import request_metrics
from providers.transport.failure_table import Failure
from providers.transport.inline_retry import retry_transient
from providers.transport.permits import refuse_write

ModelT = TypeVar("ModelT", bound=StripeModel)
ResourceT = TypeVar("ResourceT", bound=StripeResource)
FetchPage = Callable[[str | None], stripe.StripeObject]

STRIPE_PAGE_SIZE = 100  # the most Stripe gives at once
MAX_STRIPE_CONNECTIONS = 20  # stripe.md 3: at most 20 requests in flight


def in_stable_order(body: Mapping[str, Json]) -> dict[str, Json]:
    """The same with its keys sorted: Postgres returns those of a stored body in another order.

    A repeated request is then sent as the first one was, byte by byte.
    """
    return {name: _in_stable_order(body[name]) for name in sorted(body)}


def _in_stable_order(value: Json) -> Json:
    if isinstance(value, Mapping):
        return in_stable_order(value)
    if isinstance(value, list):
        return [_in_stable_order(each) for each in value]
    return value


class StripeClient:
    """``seconds`` bounds one request from connecting to the last byte.

    ``api_base`` has no default and replaces all four addresses of the SDK, so none reaches live systems by accident.
    ``account_id``: the account that an organization key (``sk_org_…``) is used for (Stripe-Context).
    """

    def __init__(self, secret_key: str, api_base: str, seconds: float, account_id: str | None = None) -> None:
        base = api_base.rstrip("/")
        # Checked here, because httpx cannot send such a header, and says so as if no answer had come.
        if not re.fullmatch(r"[\x21-\x7e]+", secret_key):
            message = "STRIPE_SECRET_KEY is empty, or contains a space, a line break or a character that is not ASCII"
            raise ValueError(message)
        if not base.startswith(("http://", "https://")):
            message = "STRIPE_API_BASE must begin with http:// or https://"
            raise ValueError(message)
        # Otherwise the SDK reports the id and duration of each call with the next, and writes an id to the home folder.
        stripe.enable_telemetry = False
        # At INFO and DEBUG the SDK logs Stripe's messages and whole bodies, with names and addresses (stripe.md 1.7).
        logging.getLogger("stripe").setLevel(logging.WARNING)
        self._transport = PooledTransport(seconds, MAX_STRIPE_CONNECTIONS)
        self.v1 = stripe.StripeClient(
            secret_key,
            max_network_retries=0,
            stripe_context=account_id,
            http_client=self._transport,
            base_addresses={"api": base, "connect": base, "files": base, "meter_events": base},
        ).v1

    def send(
        self,
        guard: RequestPermits,
        operation: str,
        purpose: str,
        request: Callable[[], stripe.StripeObject],
        model: type[ModelT],
    ) -> ModelT:
        """Send one request and parse its response. ``purpose`` completes "could not …" and contains ids only.

        ``operation`` is what Stripe's limits count: the method and the path, with every id as ``{id}`` (stripe.md 3).
        ``request`` may run three times, so it must carry its idempotency key (``with_idempotency_key``).
        Raises ``WriteRefusedError`` before anything is sent if it writes and the guard does not allow that.
        """

        refuse_write(STRIPE, guard, operation)

        def send_once() -> ModelT | Failure:
            guard.before_request(operation)
            started_at = time.monotonic()
            result = self._send_once(guard, operation, purpose, request, model)
            request_metrics.record(STRIPE, operation, started_at, result if isinstance(result, Failure) else None)
            return result

        outcome = retry_transient(send_once, lambda result: isinstance(result, Failure) and result.may_retry_inline)
        if isinstance(outcome, Failure):
            raise outcome.to_error()
        return outcome

    def list_all(  # noqa: PLR0913, PLR0917 - as for one request
        self,
        guard: RequestPermits,
        operation: str,
        purpose: str,
        fetch_page: FetchPage,
        page_type: type[StripePage[ResourceT]],
        max_pages: int,
    ) -> list[ResourceT]:
        """All entries of a list, or ``AmbiguousError``: a part proves nothing. ``fetch_page`` gets the last id."""
        found: list[ResourceT] = []
        for _ in range(max_pages):
            last_id = found[-1].id if found else None
            page = self.send(guard, operation, purpose, functools.partial(fetch_page, last_id), page_type)
            found += page.data
            if not page.has_more or not page.data:
                return found
        message = (
            f"could not {purpose}: more than {max_pages * STRIPE_PAGE_SIZE} entries, too many to be certain; "
            "find it in the Stripe dashboard by metadata billing_sync_org_id; for a customer, then set its id with "
            "`billing-sync set-customer-id ORG --stripe cus_…`"
        )
        raise AmbiguousError(STRIPE, message)

    def page_after(  # noqa: PLR0913, PLR0917 - as for one request
        self,
        guard: RequestPermits,
        operation: str,
        purpose: str,
        fetch_page: FetchPage,
        cursor: str | None,
        page_type: type[StripePage[ResourceT]],
    ) -> StripePage[ResourceT]:
        """The page after this id, or the first page again if the object with that id was deleted."""
        try:
            return self.send(guard, operation, purpose, functools.partial(fetch_page, cursor), page_type)
        except RejectedError as error:
            if cursor is None or error.code != errors.RESOURCE_MISSING:
                raise
        return self.send(guard, operation, purpose, functools.partial(fetch_page, None), page_type)

    def close(self) -> None:
        self._transport.close()

    @staticmethod
    def _send_once(
        guard: RequestPermits,
        operation: str,
        purpose: str,
        request: Callable[[], stripe.StripeObject],
        model: type[ModelT],
    ) -> ModelT | Failure:
        try:
            response = request()
            if not isinstance(response, stripe.StripeObject):
                return errors.failure_with_code(purpose, "foreign")
            last_response = response.last_response
            guard.after_response(last_response.request_id if last_response is not None else None)
            replayed = last_response is not None and errors.is_replayed(last_response.headers)
            return model.model_validate(response.to_dict() | {"replayed": replayed})
        except stripe.StripeError as error:
            failure = errors.to_failure(purpose, error, operation)
            if failure.status is not None:
                guard.after_response(failure.request_id)
            return failure
        except (ValidationError, decimal.InvalidOperation):
            return errors.failure_with_code(purpose, "unreadable")


def next_cursor(page: StripePage[ResourceT]) -> str | None:
    """The id after which the next page begins; None: this is the last one."""
    return page.data[-1].id if page.has_more and page.data else None


def with_idempotency_key(idempotency_key: str) -> stripe.RequestOptions:
    """Options with this idempotency key. The SDK would silently replace an empty one by a random one."""
    if not idempotency_key:
        message = "the idempotency key is empty"
        raise ValueError(message)
    return {"idempotency_key": idempotency_key}


def with_new_idempotency_key(operation: str) -> stripe.RequestOptions:
    """Options with a new key for this request. An update carries the whole desired state, so it may be repeated under a
    new key. A key derived from its content would replay a stale response when a name goes from A to B and back.
    """
    return with_idempotency_key(f"{operation}:{uuid.uuid4().hex}")
