"""Why there was no answer, in the one word that decides what to do: did the request leave, and was TLS the reason."""

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
        # A peer that hangs up during the handshake is a blip; every other TLS failure stays until a person acts.
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return "tls"
        cause = cause and (cause.__cause__ or cause.__context__)
    return "not_sent"
