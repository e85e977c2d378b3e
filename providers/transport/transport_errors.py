"""Why there was no response: whether the request left this machine, and whether TLS was the reason."""

from __future__ import annotations

import ssl
from typing import Literal

import httpx

TransportErrorKind = Literal["not_sent", "no_answer", "tls"]

_MAX_TLS_CAUSE_DEPTH = 8


def classify(error: httpx.RequestError) -> TransportErrorKind:
    if not isinstance(error, httpx.ConnectError):
        return "not_sent" if isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout) else "no_answer"
    cause: BaseException | None = error
    for _ in range(_MAX_TLS_CAUSE_DEPTH):
        # A peer that hangs up during the handshake is a transient error. Any other TLS failure stays until an operator
        # acts.
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return "tls"
        cause = cause and (cause.__cause__ or cause.__context__)
    return "not_sent"
