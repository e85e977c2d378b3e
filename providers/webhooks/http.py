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

from core.webhooks.deliveries import Answer
from core.webhooks.url_policy import is_public
from providers.transport import deadline
from providers.transport.deadline import AddressRefusedError
from providers.transport.transport_errors import silence

SECONDS: Final = 10.0
MOST_READ: Final = 4096  # bytes
USER_AGENT: Final = "billing-sync"
_CAUSES_FOLLOWED: Final = 4


class WebhookHttp:
    """``private``: addresses of private networks and of this machine are allowed, for tests and closed networks.

    Build it after the fork: a socket shared by two processes corrupts both streams.
    """

    def __init__(self, *, private: bool, seconds: float = SECONDS) -> None:
        self._http = deadline.client(seconds, admits=None if private else is_public)
        # One endpoint's cookies would go to others of its domain, and grow for as long as the process lives.
        self._http.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=()))

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        try:
            with self._http.stream("POST", url, content=body, headers={"User-Agent": USER_AGENT, **headers}) as answer:
                _read(answer)
                return Answer(status=answer.status_code)
        except httpx.RequestError as error:
            return Answer(error=_word(error))
        except (httpx.InvalidURL, UnicodeError):
            return Answer(error="bad_address")

    def close(self) -> None:
        self._http.close()


def _read(answer: httpx.Response) -> None:
    """What comes within the bound; the status is known, so what goes wrong here changes nothing."""
    size = 0
    try:
        for part in answer.iter_raw():
            size += len(part)
            if size > MOST_READ:
                return
    except httpx.RequestError:
        return


def _word(error: httpx.RequestError) -> str:
    """Why there was no answer; it names no address."""
    if _was_refused(error):
        return "private_address"
    if isinstance(error, httpx.TimeoutException):
        return "timeout"
    return {"tls": "tls", "not_sent": "no_connection", "no_answer": "no_answer"}[silence(error)]


def _was_refused(error: BaseException) -> bool:
    cause: BaseException | None = error
    for _ in range(_CAUSES_FOLLOWED):
        if isinstance(cause, AddressRefusedError):
            return True
        cause = cause and (cause.__cause__ or cause.__context__)
    return False
