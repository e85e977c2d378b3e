"""HTTP transport to Stripe: one connection pool per process, a deadline per call, and the kind of a transport error.

The SDK's own clients bound each read but not the call, and mark a broken certificate as "should retry"
(stripe.md 1.2, 1.3). Here a call without a response raises ``NoAnswerError``, whose ``kind`` decides what to do:
whether the request left this machine, and whether TLS was the reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import httpx
import stripe

from providers.transport import deadline
from providers.transport.transport_errors import TransportErrorKind, classify


class NoAnswerError(stripe.StripeError):
    """No response; ``kind`` says why. It is no ``APIConnectionError``, because the SDK would retry some of those."""

    def __init__(self, kind: TransportErrorKind) -> None:
        super().__init__(kind)
        self.kind = kind


class PooledTransport(stripe.HTTPClient):
    """Build it after the fork: a socket shared by two processes corrupts both streams."""

    name = "httpx"

    def __init__(self, seconds: float, max_connections: int) -> None:
        super().__init__()
        self._http = deadline.client(seconds, max_connections=max_connections)

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        post_data: str | None = None,
        *,
        _usage: list[str] | None = None,
    ) -> tuple[str, int, Mapping[str, str]]:
        try:
            response = self._http.request(method, url, headers=headers, content=post_data)
        except httpx.RequestError as error:
            no_answer = NoAnswerError(classify(error))
        else:
            if not response.is_success and not _is_stripe_error(response.content):
                # The SDK fails on an error that is a text, and keeps the whole page of a proxy in its own error.
                raise stripe.APIError(http_status=response.status_code)
            return response.content.decode("utf-8", "replace"), response.status_code, response.headers
        # Raised outside the handler: httpx's error holds the request, and with it the key.
        raise no_answer

    def close(self) -> None:
        self._http.close()


def _is_stripe_error(content: bytes) -> bool:
    """Whether this is Stripe's error body. A proxy or a wrong address returns a page, or JSON of its own."""
    try:
        body = json.loads(content)
    except ValueError:
        return False
    return isinstance(body, dict) and isinstance(body.get("error"), dict)
