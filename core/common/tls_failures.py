"""Why TLS with a server failed, in words: each client wraps Python's error in some of its own."""

from __future__ import annotations

import ssl
from typing import Final

EXPIRED: Final = "its certificate has expired"
_MAX_CAUSES: Final = 8
# OpenSSL's X509_V_ERR_… codes.
_EXPIRED: Final = {10}
_UNKNOWN_AUTHORITY: Final = {18, 19, 20, 21}
_OTHER_HOST: Final = {62, 64}
_NO_TLS: Final = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}


def reason(error: BaseException) -> str | None:
    """``None`` if TLS was not the cause."""
    cause: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _certificate_reason(cause)
        if isinstance(cause, ssl.SSLError):
            is_plain = cause.reason in _NO_TLS
            return "it answers without TLS" if is_plain else f"TLS fails with {cause.reason or type(cause).__name__}"
        if isinstance(cause, TimeoutError) and "handshake" in str(cause):
            return "it does not answer the TLS handshake, as a server without TLS does"
        cause = cause and (cause.__cause__ or cause.__context__)
    return None


def _certificate_reason(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in _EXPIRED:
        return EXPIRED
    if error.verify_code in _UNKNOWN_AUTHORITY:
        return f"its certificate is of an unknown authority ({error.verify_message})"
    if error.verify_code in _OTHER_HOST:
        return "its certificate is for another host name"
    return f"its certificate is refused ({error.verify_message})"
