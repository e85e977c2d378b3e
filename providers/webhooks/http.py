"""One POST to an address that somebody else has named: it ends in time, follows nothing and reaches no private network.

Where a name leads is judged at the moment of connecting, on the very address that is connected to, so a name that is
moved afterwards opens nothing. Of the answer its status counts; a few kilobytes are read, so that the connection may be
used again.
"""

from __future__ import annotations

from collections.abc import Mapping
from http.cookiejar import DefaultCookiePolicy
from typing import Final

import httpx

from core.webhooks.deliveries import WebhookResponse
from core.webhooks.url_policy import is_public
from providers.transport import deadline
from providers.transport.deadline import AddressBlockedError
from providers.transport.transport_errors import classify

WEBHOOK_TIMEOUT_SECONDS: Final = 10.0
MAX_RESPONSE_BYTES: Final = 4096  # bytes
WEBHOOK_USER_AGENT: Final = "billing-sync"
_MAX_CAUSE_DEPTH: Final = 4


class WebhookHttpSender:
    """``private``: addresses of private networks and of this machine are allowed, for tests and closed networks.

    Build it after the fork: a socket shared by two processes corrupts both streams.
    """

    def __init__(self, *, allow_private: bool, seconds: float = WEBHOOK_TIMEOUT_SECONDS) -> None:
        self._http = deadline.client(seconds, address_policy=None if allow_private else is_public)
        # One endpoint's cookies would go to others of its domain, and grow for as long as the process lives.
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
    """What comes within the bound; the status is known, so what goes wrong here changes nothing."""
    size = 0
    try:
        for chunk in response.iter_raw():
            size += len(chunk)
            if size > MAX_RESPONSE_BYTES:
                return
    except httpx.RequestError:
        return


def _error_code(error: httpx.RequestError) -> str:
    """Why there was no answer; it names no address."""
    if _is_address_blocked(error):
        return "private_address"
    if isinstance(error, httpx.TimeoutException):
        return "timeout"
    return {"tls": "tls", "not_sent": "no_connection", "no_answer": "no_answer"}[classify(error)]


def _is_address_blocked(error: BaseException) -> bool:
    cause: BaseException | None = error
    for _ in range(_MAX_CAUSE_DEPTH):
        if isinstance(cause, AddressBlockedError):
            return True
        cause = cause and (cause.__cause__ or cause.__context__)
    return False
