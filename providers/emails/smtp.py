"""Sends email through an SMTP server. Each connection and each email has a deadline.

smtplib bounds each read only, so a server that sends one byte at a time would block a worker indefinitely. Here one
deadline covers connecting, TLS and login included, and another covers each email. Certificates are verified, and
``SSL_CERT_FILE`` is honoured. Only the codes of a reply are kept, because its text may repeat the address or the email.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import EmailMessage
from typing import Final, Literal, TypeVar

from aiosmtplib import (
    SMTP,
    SMTPAuthenticationError,
    SMTPDataError,
    SMTPException,
    SMTPRecipientRefused,
    SMTPRecipientsRefused,
    SMTPResponseException,
    SMTPSenderRefused,
)

from core.emails.sender import EmailDeferredError, EmailError, EmailRejectedError, EmailServerUnavailableError

TlsMode = Literal["starttls", "tls", "none"]
ResultT = TypeVar("ResultT")

# Together well below ``core.emails.queue.EMAIL_LEASE``.
SMTP_CONNECT_SECONDS: Final = 10.0
SMTP_SEND_SECONDS: Final = 20.0
SMTP_QUIT_SECONDS: Final = 3.0
SMTP_SERVICE_CLOSING: Final = 421
_PERMANENT_CODES: Final = range(500, 600)
_ENHANCED_STATUS: Final = re.compile(r"[245]\.\d{1,3}\.\d{1,3}\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class SmtpConfig:
    """The address of the server. ``login`` is the user and the password."""

    host: str
    port: int
    tls: TlsMode
    login: tuple[str, str] | None = None


class SmtpTransport:
    """Opens a connection for any number of emails."""

    def __init__(
        self,
        config: SmtpConfig,
        *,
        connect_seconds: float = SMTP_CONNECT_SECONDS,
        send_seconds: float = SMTP_SEND_SECONDS,
    ) -> None:
        self._config = config
        self._connect_seconds, self._send_seconds = connect_seconds, send_seconds
        self._tls_context = ssl.create_default_context()

    @contextmanager
    def connect(self) -> Iterator[SmtpConnection]:
        with asyncio.Runner() as runner:
            client = self._new_client()
            try:
                self._open_connection(runner, client)
                yield SmtpConnection(runner, client, self._send_seconds)
            finally:
                runner.run(_quit(client))

    def _open_connection(self, runner: asyncio.Runner, client: SMTP) -> None:
        try:
            runner.run(_run_within(self._connect_seconds, client.connect()))
        except (SMTPException, OSError, UnicodeError) as error:
            raise EmailServerUnavailableError(_unavailable_reason(error)) from None

    def _new_client(self) -> SMTP:
        config = self._config
        user, password = config.login or (None, None)
        return _AbortingSmtpClient(
            hostname=config.host,
            port=config.port,
            username=user,
            password=password,
            # Not the fully qualified name, because looking it up may take many seconds.
            local_hostname=socket.gethostname(),
            timeout=self._send_seconds,
            use_tls=config.tls == "tls",
            start_tls=config.tls == "starttls",
            tls_context=self._tls_context,
        )


class _AbortingSmtpClient(SMTP):
    def close(self) -> None:
        """Close at once. The server may never answer a TLS shutdown, and the event loop ends before that."""
        transport = self.transport
        super().close()
        if isinstance(transport, asyncio.WriteTransport):
            transport.abort()


class SmtpConnection:
    def __init__(self, runner: asyncio.Runner, client: SMTP, send_seconds: float) -> None:
        self._runner, self._client, self._send_seconds = runner, client, send_seconds

    def send(self, message: EmailMessage) -> None:
        """Returns once the server has accepted the email. Raises ``EmailError``."""
        sender = message["From"].addresses[0].addr_spec
        recipient = message["To"].addresses[0].addr_spec
        if not self._client.is_connected:
            reason = "the SMTP server closed the connection"
            raise EmailServerUnavailableError(reason)
        try:
            self._runner.run(
                _run_within(self._send_seconds, self._client.sendmail(sender, [recipient], message.as_bytes()))
            )
        except SMTPRecipientsRefused as error:
            raise _to_email_error(error.recipients[0]) from None
        except SMTPDataError as error:
            raise _to_email_error(error) from None
        except SMTPSenderRefused as error:
            reason = f"the SMTP server rejects the sender address MAIL_FROM ({_reply_codes(error)})"
            raise EmailServerUnavailableError(reason) from None
        except (SMTPException, OSError):
            self._client.close()
            reason = "the connection was lost before the SMTP server accepted or rejected the email"
            raise EmailDeferredError(reason) from None


async def _run_within(seconds: float, coroutine: Coroutine[object, object, ResultT]) -> ResultT:
    async with asyncio.timeout(seconds):
        return await coroutine


async def _quit(client: SMTP) -> None:
    """Send QUIT if the connection is open. Errors are ignored, because what was sent has been sent."""
    with suppress(SMTPException, OSError):
        if client.is_connected:
            await _run_within(SMTP_QUIT_SECONDS, client.quit())
    client.close()
    await asyncio.sleep(0)


def _to_email_error(error: SMTPResponseException) -> EmailError:
    """4xx means that the server may accept the email later, 5xx that it never will."""
    rejected = "the recipient" if isinstance(error, SMTPRecipientRefused) else "the email"
    if error.code == SMTP_SERVICE_CLOSING:
        return EmailServerUnavailableError(f"the SMTP server is closing the connection ({_reply_codes(error)})")
    reason = f"the SMTP server rejects {rejected} ({_reply_codes(error)})"
    return EmailRejectedError(reason) if error.code in _PERMANENT_CODES else EmailDeferredError(reason)


def _unavailable_reason(error: Exception) -> str:
    cause = error.__cause__ or error
    match error:
        case SMTPAuthenticationError():
            return f"the SMTP server rejects SMTP_USER and SMTP_PASSWORD ({_reply_codes(error)})"
        case SMTPResponseException():
            return f"the SMTP server accepts no email at the moment ({_reply_codes(error)})"
        case SMTPException() if not isinstance(error, OSError):
            return "the SMTP server does not support the mode in SMTP_TLS, or the login"
    if isinstance(cause, ssl.SSLCertVerificationError):
        return "the certificate of the SMTP server is not valid for SMTP_HOST"
    if isinstance(error, TimeoutError):
        return "the SMTP server did not respond in time"
    return f"the SMTP server did not respond ({type(cause).__name__})"


def _reply_codes(reply: SMTPResponseException) -> str:
    status = _ENHANCED_STATUS.match(reply.message)
    return f"{reply.code} {status[0]}" if status else str(reply.code)
