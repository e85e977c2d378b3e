"""Sends one POST to a subscriber's URL, within a deadline. It follows no redirect and reaches no private network.

The address policy is applied when connecting, to the very address that is connected to, so changing the DNS entry
afterwards gains nothing. Only the status of the response counts. A few kilobytes of it are read, so that the connection
can be used again.
"""

from __future__ import annotations

from collections.abc import Mapping
from http.cookiejar import DefaultCookiePolicy
from typing import Final

import httpx

from core.webhooks.deliveries import NoResponseReason, WebhookResponse
from core.webhooks.url_policy import is_public
from providers.transport import deadline
from providers.transport.deadline import AddressBlockedError
from providers.transport.transport_errors import TransportErrorKind, classify

WEBHOOK_TIMEOUT_SECONDS: Final = 10.0
MAX_RESPONSE_BYTES: Final = 4096
WEBHOOK_USER_AGENT: Final = "billing-sync"
_MAX_CAUSE_DEPTH: Final = 4
_REASONS: Final[Mapping[TransportErrorKind, NoResponseReason]] = {
    "tls": "tls",
    "not_sent": "no_connection",
    "no_answer": "no_answer",
}


class WebhookHttpSender:
    """``allow_private`` allows addresses of private networks and of this machine, for tests and closed networks.

    Build it after the fork: a socket shared by two processes corrupts both streams.
    """

    def __init__(self, *, allow_private: bool, seconds: float = WEBHOOK_TIMEOUT_SECONDS) -> None:
        self._http = deadline.client(seconds, address_policy=None if allow_private else is_public)
        # Cookies are not stored: those of one endpoint would be sent to others of its domain, and would accumulate.
        self._http.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=()))

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> WebhookResponse:
        try:
            with self._http.stream(
                "POST", url, content=body, headers={"User-Agent": WEBHOOK_USER_AGENT, **headers}
            ) as response:
                _drain_response(response)
                return WebhookResponse(status=response.status_code)
        except httpx.RequestError as error:
            return WebhookResponse(error=_error_code(error))
        except (httpx.InvalidURL, UnicodeError):
            return WebhookResponse(error="bad_address")

    def close(self) -> None:
        self._http.close()


def _drain_response(response: httpx.Response) -> None:
    """Read up to the bound. The status is known already, so an error changes nothing."""
    size = 0
    try:
        for chunk in response.iter_raw():
            size += len(chunk)
            if size > MAX_RESPONSE_BYTES:
                return
    except httpx.RequestError:
        return


def _error_code(error: httpx.RequestError) -> NoResponseReason:
    """Why there was no response. It contains no address."""
    if _is_address_blocked(error):
        return "private_address"
    if isinstance(error, httpx.TimeoutException):
        return "timeout"
    return _REASONS[classify(error)]


def _is_address_blocked(error: BaseException) -> bool:
    cause: BaseException | None = error
    for _ in range(_MAX_CAUSE_DEPTH):
        if isinstance(cause, AddressBlockedError):
            return True
        cause = cause and (cause.__cause__ or cause.__context__)
    return False
