"""Real TLS in front of a server: certificates made for the test, and a listener that ends TLS and passes on the rest.

The wheels of Valkey and Postgres are built without TLS. The listener is Python's own TLS over the system's OpenSSL; for
Postgres it answers the request for TLS that precedes the handshake.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

CertificateName = Literal["good", "expired", "unknown authority", "other host"]
POSTGRES_TLS_REQUEST = struct.pack("!ii", 8, 80877103)
CONNECT_SECONDS = 5.0
_Issuer = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


@dataclass(frozen=True)
class Certificates:
    """``authority``: the file that the clients are given. Each other file holds a certificate with its key."""

    folder: Path

    @property
    def authority(self) -> Path:
        return self.folder / "authority.pem"

    def file(self, name: CertificateName) -> Path:
        return self.folder / f"{name}.pem"


def make_certificates(folder: Path) -> Certificates:
    made = Certificates(folder)
    ours, theirs = _sign("Our authority", None), _sign("Another authority", None)
    _write(made.authority, ours, with_key=False)
    _write(made.file("good"), _sign("localhost", ours))
    _write(made.file("expired"), _sign("localhost", ours, valid_until=datetime.now(UTC) - timedelta(hours=1)))
    _write(made.file("unknown authority"), _sign("localhost", theirs))
    _write(made.file("other host"), _sign("elsewhere.test", ours))
    return made


def _sign(host: str, issuer: _Issuer | None, valid_until: datetime | None = None) -> _Issuer:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    names: list[x509.GeneralName] = [x509.DNSName(host.replace(" ", "-"))]
    if host == "localhost":
        names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    now = datetime.now(UTC)
    signer = issuer[1] if issuer else key
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer[0].subject if issuer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(valid_until or now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(_key_usage(is_authority=issuer is None), critical=True)
        .sign(signer, hashes.SHA256())
    )
    return certificate, key


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


def _write(file: Path, signed: _Issuer, *, with_key: bool = True) -> None:
    certificate, key = signed
    content = certificate.public_bytes(serialization.Encoding.PEM)
    if with_key:
        form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        content += key.private_bytes(serialization.Encoding.PEM, form, plain)
    file.write_bytes(content)


@contextmanager
def tls_front(server: tuple[str, int] | str, certificate: Path, *, is_postgres: bool = False) -> Iterator[int]:
    """The port on which ``server`` (host and port, or the path of a socket) is reached with TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_accept, args=(listener, context, server, is_postgres), daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def _accept(
    listener: socket.socket,
    context: ssl.SSLContext,
    server: tuple[str, int] | str,
    is_postgres: bool,  # noqa: FBT001
) -> None:
    with suppress(OSError):  # the listener was closed
        while True:
            client, _ = listener.accept()
            threading.Thread(target=_serve, args=(client, context, server, is_postgres), daemon=True).start()


def _serve(
    client: socket.socket,
    context: ssl.SSLContext,
    server: tuple[str, int] | str,
    is_postgres: bool,  # noqa: FBT001
) -> None:
    with client, suppress(OSError):  # a handshake that the client refuses is an error of TLS, which is one of the OS
        client.settimeout(CONNECT_SECONDS)
        if is_postgres:
            if client.recv(len(POSTGRES_TLS_REQUEST), socket.MSG_WAITALL) != POSTGRES_TLS_REQUEST:
                return
            client.sendall(b"S")
        with context.wrap_socket(client, server_side=True) as secured, _connect(server) as plain:
            secured.settimeout(None)
            back = threading.Thread(target=_copy, args=(plain, secured), daemon=True)
            back.start()
            _copy(secured, plain)


def _connect(server: tuple[str, int] | str) -> socket.socket:
    if isinstance(server, tuple):
        return socket.create_connection(server)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(server)
    return connection


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError, ValueError):
        while chunk := source.recv(65_536):
            target.sendall(chunk)
    for each in (source, target):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
