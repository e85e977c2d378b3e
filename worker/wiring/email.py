"""Where mails go: to the mail server that is named, else to a folder where everything is one process, else nowhere yet.

Without any they wait in their rows, and `billing-sync status` says so.
"""

from __future__ import annotations

from email.headerregistry import Address
from email.utils import parseaddr
from typing import Final

from core.access import invitations
from core.catalog.plans import Catalog
from core.common.clock import utc_now
from core.db.database import Database
from core.emails.sender import MailServer, Post, Sender
from core.emails.templates import one_line
from providers.emails.folder import MailFolder
from providers.emails.smtp import SmtpAddress, SmtpServer
from worker.config.email import Tls
from worker.config.settings import Settings

FOLDER: Final = "mails"
PORTS: Final[dict[Tls, int]] = {"starttls": 587, "tls": 465, "none": 25}
# Whom mails are from that go to a folder.
NOBODY: Final = Address("billing-sync", "billing-sync", "localhost")


def open_post(settings: Settings, database: Database, plans: Catalog) -> Post | None:
    server = _server(settings)
    if server is None:
        return None
    sender = Sender(address=_from(settings), page=settings.invitation_url)
    return Post(
        database=database,
        catalog=plans,
        clock=utc_now,
        sender=sender,
        server=server,
        new_token=invitations.new_token,
    )


def _server(settings: Settings) -> MailServer | None:
    if settings.smtp_host is None:
        return MailFolder(settings.data_dir / FOLDER) if settings.is_embedded else None
    user, password = settings.smtp_user, settings.smtp_password
    return SmtpServer(
        SmtpAddress(
            host=settings.smtp_host,
            port=settings.smtp_port or PORTS[settings.smtp_tls],
            tls=settings.smtp_tls,
            login=(user, password.get_secret_value()) if user is not None and password is not None else None,
        )
    )


def _from(settings: Settings) -> Address:
    if settings.mail_from is None:
        return NOBODY
    name, address = parseaddr(settings.mail_from)
    return Address(one_line(name), addr_spec=address)
