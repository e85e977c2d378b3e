"""A mail server by SMTP: what it says of a mail is named once here, and a dialog ends in time.

smtplib bounds each read, so a server that drips a byte at a time holds a worker for ever; here one deadline covers
reaching the server, and another each mail. Certificates are verified; ``SSL_CERT_FILE`` is honoured. Of an answer only
its codes go on: the text may repeat the address, or the mail itself.
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

from core.emails.sender import MailError, MailPostponedError, MailRefusedError, MailServerAwayError

Tls = Literal["starttls", "tls", "none"]
Result = TypeVar("Result")

# Together well below ``core.emails.queue.LEASE``.
REACH_SECONDS: Final = 10.0
MAIL_SECONDS: Final = 20.0
LEAVE_SECONDS: Final = 3.0
CLOSING: Final = 421
_FOR_GOOD: Final = range(500, 600)
_STATUS: Final = re.compile(r"[245]\.\d{1,3}\.\d{1,3}\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class SmtpAddress:
    """Where the server is; ``login`` is user and password."""

    host: str
    port: int
    tls: Tls
    login: tuple[str, str] | None = None


class SmtpServer:
    """Each line is one connection, for as many mails as there are."""

    def __init__(
        self, address: SmtpAddress, *, reach_seconds: float = REACH_SECONDS, mail_seconds: float = MAIL_SECONDS
    ) -> None:
        self._address = address
        self._reach_seconds, self._mail_seconds = reach_seconds, mail_seconds
        self._context = ssl.create_default_context()

    @contextmanager
    def line(self) -> Iterator[SmtpLine]:
        with asyncio.Runner() as runner:
            client = self._client()
            try:
                self._reach(runner, client)
                yield SmtpLine(runner, client, self._mail_seconds)
            finally:
                runner.run(_leave(client))

    def _reach(self, runner: asyncio.Runner, client: SMTP) -> None:
        try:
            runner.run(_within(self._reach_seconds, client.connect()))
        except (SMTPException, OSError, UnicodeError) as error:
            raise MailServerAwayError(_why_away(error)) from None

    def _client(self) -> SMTP:
        address = self._address
        user, password = address.login or (None, None)
        return _Client(
            hostname=address.host,
            port=address.port,
            username=user,
            password=password,
            # Not the full name, which may cost a look-up of many seconds.
            local_hostname=socket.gethostname(),
            timeout=self._mail_seconds,
            use_tls=address.tls == "tls",
            start_tls=address.tls == "starttls",
            tls_context=self._context,
        )


class _Client(SMTP):
    def close(self) -> None:
        """At once: a farewell in TLS may be waited for in vain, and the loop ends before."""
        transport = self.transport
        super().close()
        if isinstance(transport, asyncio.WriteTransport):
            transport.abort()


class SmtpLine:
    def __init__(self, runner: asyncio.Runner, client: SMTP, seconds: float) -> None:
        self._runner, self._client, self._seconds = runner, client, seconds

    def send(self, message: EmailMessage) -> None:
        """Returns once the server took it. Raises ``MailError``."""
        sender = message["From"].addresses[0].addr_spec
        recipient = message["To"].addresses[0].addr_spec
        if not self._client.is_connected:
            reason = "it has closed the connection"
            raise MailServerAwayError(reason)
        try:
            self._runner.run(_within(self._seconds, self._client.sendmail(sender, [recipient], message.as_bytes())))
        except SMTPRecipientsRefused as refusal:
            raise _verdict(refusal.recipients[0]) from None
        except SMTPDataError as refusal:
            raise _verdict(refusal) from None
        except SMTPSenderRefused as refusal:
            reason = f"it refuses the sender, MAIL_FROM ({_codes(refusal)})"
            raise MailServerAwayError(reason) from None
        except (SMTPException, OSError):
            self._client.close()
            reason = "the mail server was lost before it said whether it took the mail"
            raise MailPostponedError(reason) from None


async def _within(seconds: float, work: Coroutine[object, object, Result]) -> Result:
    async with asyncio.timeout(seconds):
        return await work


async def _leave(client: SMTP) -> None:
    """Politely where that is possible; what was sent was sent."""
    with suppress(SMTPException, OSError):
        if client.is_connected:
            await _within(LEAVE_SECONDS, client.quit())
    client.close()
    await asyncio.sleep(0)


def _verdict(refusal: SMTPResponseException) -> MailError:
    """4xx: later, says the server; 5xx: never."""
    what = "the recipient" if isinstance(refusal, SMTPRecipientRefused) else "the mail"
    if refusal.code == CLOSING:
        return MailServerAwayError(f"it closes the connection ({_codes(refusal)})")
    reason = f"the mail server refuses {what} ({_codes(refusal)})"
    return MailRefusedError(reason) if refusal.code in _FOR_GOOD else MailPostponedError(reason)


def _why_away(error: Exception) -> str:
    cause = error.__cause__ or error
    match error:
        case SMTPAuthenticationError():
            return f"it refuses SMTP_USER and SMTP_PASSWORD ({_codes(error)})"
        case SMTPResponseException():
            return f"it takes no mail now ({_codes(error)})"
        case SMTPException() if not isinstance(error, OSError):
            return "it does not offer what SMTP_TLS, or a login, asks for"
    if isinstance(cause, ssl.SSLCertVerificationError):
        return "its certificate is not good for SMTP_HOST"
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    return f"it does not answer ({type(cause).__name__})"


def _codes(answer: SMTPResponseException) -> str:
    status = _STATUS.match(answer.message)
    return f"{answer.code} {status[0]}" if status else str(answer.code)
