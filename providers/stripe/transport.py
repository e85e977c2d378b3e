"""The wire to Stripe: one pooled HTTP client a process, a total deadline per call, and the cause of every silence.

The SDK's own clients bound each read but not the call, and say "should retry" of a broken certificate
(stripe.md 1.2, 1.3). Here a call that got no answer is ``Unanswered`` with the one thing that decides what to do:
whether the request left this machine, and whether TLS was the reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import httpx
import stripe

from providers.transport import deadline
from providers.transport.transport_errors import Silence, silence


class Unanswered(stripe.StripeError):
    """No answer; ``silence`` says why. Not an ``APIConnectionError``: of those the SDK would want to retry some."""

    def __init__(self, silence: Silence) -> None:
        super().__init__(silence)
        self.silence = silence


class PooledConnection(stripe.HTTPClient):
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
            answer = self._http.request(method, url, headers=headers, content=post_data)
        except httpx.RequestError as error:
            unanswered = Unanswered(silence(error))
        else:
            if not answer.is_success and not _is_refusal(answer.content):
                # The SDK breaks on an error that is a text, and keeps the whole page of a proxy in its own.
                raise stripe.APIError(http_status=answer.status_code)
            return answer.content.decode("utf-8", "replace"), answer.status_code, answer.headers
        # Raised outside the handler: httpx's error holds the request, and with it the key.
        raise unanswered

    def close(self) -> None:
        self._http.close()


def _is_refusal(content: bytes) -> bool:
    """Whether this is Stripe's error body: a proxy or a wrong address answers a page, or JSON of its own."""
    try:
        body = json.loads(content)
    except ValueError:
        return False
    return isinstance(body, dict) and isinstance(body.get("error"), dict)
