"""Sends a request over HTTP/1.1 byte by byte, since a client library refuses much of what a stranger may send."""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

ANSWER_SECONDS: Final = 60.0
LARGE_BODY: Final = 50_000  # bytes
EARLY_ANSWER_SECONDS: Final = 0.5
SHOWN_BYTES: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedRequest:
    """``target``: path and query as they are sent. ``operation``: that of the document which it was made from."""

    number: int
    operation: str
    caller: str
    method: str
    target: bytes
    headers: Sequence[tuple[str, bytes]]
    body: bytes = b""

    @property
    def shown(self) -> str:
        """Without the caller's credential."""
        headers = ", ".join(f"{name}: {value!r}" for name, value in self.headers if name != "Authorization")
        return (
            f"request {self.number} by {self.caller}: {self.method} {self.target[:SHOWN_BYTES]!r} {{{headers}}} "
            f"{self.body[:SHOWN_BYTES]!r}"
        )

    @property
    def has_invalid_head(self) -> bool:
        """A control character, at which a server stops reading."""
        return any(byte < ord(" ") for value in (self.target, *(each for _, each in self.headers)) for byte in value)

    @property
    def head(self) -> bytes:
        lines = [self.method.encode() + b" " + self.target + b" HTTP/1.1"]
        lines += [name.encode() + b": " + value for name, value in self.headers]
        return b"\r\n".join([*lines, b"", b""])


@dataclass(frozen=True, slots=True)
class RawAnswer:
    status: int
    body: bytes


def send(port: int, request: GeneratedRequest) -> RawAnswer:
    """Raises ``OSError`` or ``http.client.HTTPException`` if there is no answer in time."""
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS) as connection:
        # A server may answer and close before it has read all; what it has not read would reset the connection.
        if len(request.body) > LARGE_BODY or request.has_invalid_head:
            connection.sendall(request.head)
            if not select.select([connection], [], [], EARLY_ANSWER_SECONDS)[0]:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.sendall(request.body)
        else:
            connection.sendall(request.head + request.body)
        answer = http.client.HTTPResponse(connection, method=request.method)
        answer.begin()
        return RawAnswer(answer.status, answer.read())
