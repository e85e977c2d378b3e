"""What some poolers do that PgBouncer does not: a listener that passes on everything but one status of the server."""

from __future__ import annotations

import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, Final

from sqlalchemy import make_url

_HEADER: Final = struct.Struct("!ci")  # the kind of a message, and its length without the kind
_STATUS: Final = b"S"


@contextmanager
def without_status(url: str, name: str) -> Iterator[str]:
    """The address at which this server does not say what it has as ``name``. For connections without TLS."""
    server = make_url(url)
    hidden = name.encode() + b"\0"

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with _connect(str(server.query.get("host", server.host)), server.port or 5432) as behind:
                threading.Thread(target=_copy, args=(self.request, behind), daemon=True).start()
                with suppress(OSError), behind.makefile("rb") as answers:
                    _copy_answers(answers, self.request, hidden)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as listener:
        listener.daemon_threads = True
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        try:
            yield (
                f"postgresql://{server.username}:{server.password or 'x'}@127.0.0.1:{listener.server_address[1]}/"
                f"{server.database}?sslmode=disable&gssencmode=disable"
            )
        finally:
            listener.shutdown()


def _connect(host: str, port: int) -> socket.socket:
    if not host.startswith("/"):
        return socket.create_connection((host, port))
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(f"{host}/.s.PGSQL.{port}")
    return connection


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while chunk := source.recv(65_536):
            target.sendall(chunk)
        target.shutdown(socket.SHUT_WR)


def _copy_answers(answers: BinaryIO, client: socket.socket, hidden: bytes) -> None:
    while len(header := answers.read(_HEADER.size)) == _HEADER.size:
        kind, length = _HEADER.unpack(header)
        body = answers.read(length - 4)
        if kind != _STATUS or not body.startswith(hidden):
            client.sendall(header + body)
