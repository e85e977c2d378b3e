"""A real SMTP server on loopback that accepts emails, rejects them or closes the connection, as a test sets it."""

from __future__ import annotations

import re
import socket
import ssl
import threading
from asyncio import Transport
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from tests.support.waiting import PATIENCE_SECONDS, until

ACCEPTED_REPLY = "250 OK"
LOGIN = ("billing", "a password that nobody may read")
TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass
class SmtpServer:
    """``accepted`` has the emails that it accepted, ``received`` all that arrived by DATA.

    ``mail``, ``rcpt`` and ``data`` are its next replies to these commands. ``hang_up`` is the number of emails after
    whose DATA it closes the connection without a reply.
    """

    port: int
    accepted: list[EmailMessage] = field(default_factory=list)
    received: list[EmailMessage] = field(default_factory=list)
    senders: list[str | None] = field(default_factory=list)
    mail: deque[str] = field(default_factory=deque)
    rcpt: deque[str] = field(default_factory=deque)
    data: deque[str] = field(default_factory=deque)
    hang_up: int = 0
    connections: int = 0

    async def handle_EHLO(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, session: Session, _envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        self.connections += 1
        return responses

    async def handle_MAIL(  # noqa: N802 - aiosmtpd's name and arguments
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.mail:
            return self.mail.popleft()
        self.senders.append(address)
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return ACCEPTED_REPLY

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name and arguments
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        answer = self.rcpt.popleft() if self.rcpt else ACCEPTED_REPLY
        if answer == ACCEPTED_REPLY:
            envelope.rcpt_tos.append(address)
        return answer

    async def handle_DATA(self, server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's name
        content = envelope.content if isinstance(envelope.content, bytes) else (envelope.content or "").encode()
        message = message_from_bytes(content, EmailMessage, policy=default)
        self.received.append(message)
        if self.hang_up:
            self.hang_up -= 1
            assert isinstance(server.transport, Transport)
            server.transport.abort()
            return ACCEPTED_REPLY
        answer = self.data.popleft() if self.data else ACCEPTED_REPLY
        if answer == ACCEPTED_REPLY:
            self.accepted.append(message)
        return answer

    def to(self, address: str) -> list[EmailMessage]:
        return [message for message in self.accepted if message["To"] == address]

    def wait_for(self, count: int) -> None:
        """Wait until it has accepted ``count`` emails."""
        until(
            lambda: len(self.accepted) == count,
            f"{count} emails",
            details=lambda: [message["Subject"] for message in self.accepted],
        )


def text(message: EmailMessage) -> str:
    body = message.get_body(("plain",))
    assert body is not None
    return str(body.get_content())


def page(message: EmailMessage) -> str:
    body = message.get_body(("html",))
    assert body is not None
    return str(body.get_content())


def token(message: EmailMessage) -> str:
    """The token of the invitation in an email."""
    [found] = set(TOKEN.findall(text(message)))
    return str(found)


@contextmanager
def smtp_server(port: int | None = None, tls: ssl.SSLContext | None = None, **options: Any) -> Iterator[SmtpServer]:  # noqa: ANN401 - aiosmtpd's own
    """``tls`` encrypts from the first byte on; the option ``tls_context`` allows STARTTLS."""
    handler = SmtpServer(port or free_port())
    controller = Controller(
        handler, hostname="127.0.0.1", port=handler.port, ssl_context=tls, server_hostname="mail.test", **options
    )
    controller.start()
    handler.connections = 0
    try:
        yield handler
    finally:
        controller.stop()


@contextmanager
def silent_server() -> Iterator[int]:
    """A server that sends its greeting byte by byte and never ends it."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def drip() -> None:
        listener.settimeout(PATIENCE_SECONDS)
        with listener.accept()[0] as caller:
            caller.sendall(b"220 ")
            while not over.wait(0.05):
                try:
                    caller.sendall(b"x")
                except OSError:
                    return

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        over.set()
        thread.join(5)
        listener.close()


def knows_the_login(
    _server: SMTP,
    _session: Session,
    _envelope: Envelope,
    _mechanism: str,
    data: Any,  # noqa: ANN401 - aiosmtpd's own
) -> AuthResult:
    given = (data.login.decode(), data.password.decode()) if isinstance(data, LoginPassword) else None
    return AuthResult(success=given == LOGIN, handled=False)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
    return port
