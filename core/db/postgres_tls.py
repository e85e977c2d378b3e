"""Why a Postgres server's certificate is refused. libpq says only that it is, so the handshake is made once more."""

from __future__ import annotations

import socket
import ssl
import struct
from typing import Final

from sqlalchemy import URL

from core.common import tls_failures

LIBPQ_REFUSAL: Final = "certificate verify failed"
# What else libpq says of a certificate.
_OTHER_HOST: Final = "does not match host name"
_NO_AUTHORITIES: Final = "root certificate file"
TLS_CHECK_SECONDS: Final = 5.0
POSTGRES_PORT: Final = 5432
_TLS_REQUEST: Final = struct.pack("!ii", 8, 80877103)  # its length, and a number that is no protocol version
_TLS_ACCEPTED: Final = b"S"


def explained(url: URL, message: str) -> str:
    """The message of libpq, with the reason if its certificate was refused."""
    why = _refusal(url) if LIBPQ_REFUSAL in message else None
    return message if why is None else f"{message.rstrip()}: {why}"


def way_out(reason: str, setting: str) -> str | None:
    """What to do if libpq refused the certificate for this reason; ``None``: it has another one."""
    if _OTHER_HOST in reason:
        return (
            f"use the host that its certificate names, or in {setting} `sslmode=verify-ca`, which does not compare it"
        )
    if LIBPQ_REFUSAL not in reason and _NO_AUTHORITIES not in reason:
        return None
    if tls_failures.EXPIRED in reason:
        return "renew the certificate of the server"
    return (
        f"add `sslrootcert=FILE` with the certificate of its authority to {setting} (Amazon RDS: global-bundle.pem), "
        "and `sslmode=verify-ca` if the certificate is for another host name"
    )


def _refusal(url: URL) -> str | None:
    """``None``: the reason is not certain, for example because the server accepts nobody any more."""
    host, port = _first_server(url)
    authorities = url.query.get("sslrootcert")
    try:
        context = ssl.create_default_context(cafile=None if authorities in {None, "system"} else str(authorities))
        with socket.create_connection((host, port), TLS_CHECK_SECONDS) as connection:
            connection.settimeout(TLS_CHECK_SECONDS)
            connection.sendall(_TLS_REQUEST)
            if connection.recv(1) == _TLS_ACCEPTED:
                context.wrap_socket(connection, server_hostname=host).close()
    except OSError as error:  # errors of TLS are errors of the operating system
        return tls_failures.reason(error)
    return None


def _first_server(url: URL) -> tuple[str, int]:
    """Several are in one text with commas, whichever form the address has."""
    _, arguments = url.get_dialect()().create_connect_args(url)
    host, port = (str(arguments.get(name, "")).partition(",")[0] for name in ("host", "port"))
    return host or "localhost", int(port) if port.isdigit() else POSTGRES_PORT
