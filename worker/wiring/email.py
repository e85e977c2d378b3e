"""Builds the email sender: through the SMTP server, or into a folder if everything runs in one process.

Without either, emails stay queued, and `billing-sync status` shows it.
"""

from __future__ import annotations

from email.headerregistry import Address
from email.utils import parseaddr
from typing import Final

from core.access import invitations
from core.catalog.plans import Catalog
from core.common.clock import utc_now
from core.db.database import Database
from core.emails.sender import EmailSender, EmailTransport, SenderConfig
from core.emails.templates import single_line
from providers.emails.folder import EmailFolder
from providers.emails.smtp import SMTP_CONNECT_SECONDS, SmtpConfig, SmtpTransport
from worker.config.email import TlsMode
from worker.config.settings import Settings

EMAIL_FOLDER_NAME: Final = "emails"
DEFAULT_SMTP_PORTS: Final[dict[TlsMode, int]] = {"starttls": 587, "tls": 465, "none": 25}
# Sender of the emails that are written to the folder.
FOLDER_SENDER_ADDRESS: Final = Address("billing-sync", "billing-sync", "localhost")


def open_email_sender(settings: Settings, database: Database, plans: Catalog) -> EmailSender | None:
    transport = _email_transport(settings)
    if transport is None:
        return None
    sender_config = SenderConfig(from_address=_sender_address(settings), invitation_url=settings.invitation_url)
    return EmailSender(
        database=database,
        catalog=plans,
        clock=utc_now,
        config=sender_config,
        transport=transport,
        new_token=invitations.new_token,
        management=settings.management,
    )


def _email_transport(settings: Settings) -> EmailTransport | None:
    if settings.smtp_host is None:
        return EmailFolder(settings.data_dir / EMAIL_FOLDER_NAME) if settings.is_embedded else None
    return open_smtp(settings, settings.smtp_host)


def open_smtp(settings: Settings, host: str, connect_seconds: float = SMTP_CONNECT_SECONDS) -> SmtpTransport:
    """The transport to ``SMTP_HOST``; it connects when it is used."""
    user, password = settings.smtp_user, settings.smtp_password
    return SmtpTransport(
        SmtpConfig(
            host=host,
            port=settings.smtp_port or DEFAULT_SMTP_PORTS[settings.smtp_tls],
            tls=settings.smtp_tls,
            login=(user, password.get_secret_value()) if user is not None and password is not None else None,
        ),
        connect_seconds=connect_seconds,
    )


def _sender_address(settings: Settings) -> Address:
    if settings.mail_from is None:
        return FOLDER_SENDER_ADDRESS
    name, address = parseaddr(settings.mail_from)
    return Address(single_line(name), addr_spec=address)
