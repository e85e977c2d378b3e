"""Sending mails: claim one, send it, write down how that went; each its own transaction, none open meanwhile.

A lease in the row keeps two workers from the same mail. Killed between the mail server's yes and our commit, a mail is
sent again under the same Message-ID, by which mailboxes and people know it for the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from email.headerregistry import Address
from email.message import EmailMessage
from typing import Final, Protocol

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from core.catalog.plans import Catalog
from core.common import email_addresses
from core.common.clock import Clock
from core.common.validation import one_of
from core.db.database import Database
from core.db.models.access import Invitation, User
from core.db.models.events import Event
from core.db.models.organizations import MEMBERSHIP_ROLES, Organization
from core.emails import queue, templates
from core.emails.queue import LeasedEmail
from core.emails.templates import TemplateContext

log = structlog.get_logger()

# About eight hours in all: a mail server that says "later" for longer means no.
MAX_EMAIL_ATTEMPTS: Final = 10
MIN_EMAIL_RETRY_DELAY: Final = timedelta(minutes=1)
MAX_EMAIL_RETRY_DELAY: Final = timedelta(hours=4)
INVITATION_TOKEN_PLACEHOLDER: Final = "{token}"  # noqa: S105 - where it goes


class EmailError(Exception):
    """``reason``: the mail server's code and our words; neither address nor name nor what the server wrote."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class EmailServerUnavailableError(EmailError):
    """No mail goes through now, whosever it is."""


class EmailDeferredError(EmailError):
    """This mail was not taken, or nobody knows; the next one may be."""


class EmailRejectedError(EmailError):
    """This mail is never taken."""


class EmailConnection(Protocol):
    """One connection to the mail server."""

    def send(self, message: EmailMessage) -> None:
        """Returns once it was taken. Raises ``EmailError``."""


class EmailTransport(Protocol):
    def connect(self) -> AbstractContextManager[EmailConnection]:
        """Raises ``EmailServerUnavailableError``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SenderConfig:
    """``page``: the page that accepts invitations, ``{token}`` in it; ``None``: mails hold the token itself."""

    from_address: Address
    invitation_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SendSummary:
    """What became of the mails of one run; ``away`` says why it ended early."""

    sent: int = 0
    unavailable_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmailSender:
    """Sends what is due. ``new_token`` makes one more token for an invitation, by its id, in the given transaction."""

    database: Database
    catalog: Catalog
    clock: Clock
    config: SenderConfig
    transport: EmailTransport
    new_token: Callable[[Session, str], tuple[Invitation, str]]

    def has_due(self) -> bool:
        with self.database.read() as session:
            return queue.any_due(session, self.clock())

    def run(self, seconds: float) -> SendSummary:
        """Send until nothing is due, at most so long and one mail more."""
        deadline = time.monotonic() + seconds
        with self.database.write() as session:
            queue.release_ready(session, self.clock())
        email, sent = self._lease_next(), 0
        if email is None:
            return SendSummary()
        try:
            with self.transport.connect() as connection:
                while email is not None:
                    sent += self._send(connection, email)
                    email = self._lease_next() if time.monotonic() < deadline else None
        except EmailServerUnavailableError as error:
            if email is not None:
                self._reschedule(email, error.reason, count_attempt=False)
            log.warning("email_server_unavailable", reason=error.reason)
            return SendSummary(sent=sent, unavailable_reason=error.reason)
        return SendSummary(sent=sent)

    def _lease_next(self) -> LeasedEmail | None:
        with self.database.write() as session:
            return queue.lease_next(session, self.clock())

    def _send(self, connection: EmailConnection, email: LeasedEmail) -> int:
        """1: it was taken. Raises ``EmailServerUnavailableError``."""
        try:
            connection.send(self._render(email))
        except EmailDeferredError as error:
            if email.attempts + 1 < MAX_EMAIL_ATTEMPTS:
                self._reschedule(email, error.reason, count_attempt=True)
            else:
                self._fail(email, f"{error.reason}, {MAX_EMAIL_ATTEMPTS} times")
            return 0
        except EmailRejectedError as error:
            self._fail(email, error.reason)
            return 0
        with self.database.write() as session:
            queue.mark_sent(session, email, self.clock())
        log.info("email_sent", mail=email.id, kind=email.kind, org_id=email.org_id)
        return 1

    def _reschedule(self, email: LeasedEmail, reason: str, *, count_attempt: bool) -> None:
        delay = (
            min(MAX_EMAIL_RETRY_DELAY, MIN_EMAIL_RETRY_DELAY * 2**email.attempts)
            if count_attempt
            else MIN_EMAIL_RETRY_DELAY
        )
        with self.database.write() as session:
            queue.reschedule(session, email, reason, self.clock() + delay, count_attempt=count_attempt)
        log.info("email_rescheduled", mail=email.id, kind=email.kind, org_id=email.org_id, reason=reason)

    def _fail(self, email: LeasedEmail, reason: str) -> None:
        with self.database.write() as session:
            queue.fail(session, email, reason, self.clock())
        log.warning("email_failed", mail=email.id, kind=email.kind, org_id=email.org_id, reason=reason)

    def _render(self, email: LeasedEmail) -> EmailMessage:
        """Written anew at each try; an invitation's with a token of its own, whose hash is committed by then."""
        if not email_addresses.is_mailable(email.recipient):
            reason = "the address is none that a mail can be sent to"
            raise EmailRejectedError(reason)
        with self.database.write() if email.invitation_id else self.database.read() as session:
            context = self._context(session, email)
        message = templates.render(
            email.kind,
            context,
            sender=self.config.from_address,
            recipient=email.recipient,
            message_id=f"<{email.kind}.{email.id}@{self.config.from_address.domain}>",
        )
        return templates.set_date(message, self.clock())

    def _context(self, session: Session, email: LeasedEmail) -> TemplateContext:
        organization = session.get_one(Organization, email.org_id)
        if email.invitation_id is not None:
            return self._invitation_context(session, organization, email.invitation_id)
        event_data = session.scalar(select(Event.data).where(Event.id == email.cause)) or {}
        if email.kind == "welcome":
            owner = session.get(User, str(event_data.get("user_id")))
            return TemplateContext(
                organization=organization.name,
                plan=self._plan_name(organization.plan_tier),
                recipient_name=owner.name if owner else None,
            )
        return TemplateContext(
            organization=organization.name,
            plan=self._plan_name(str(event_data.get("to"))),
            former_plan=self._plan_name(str(event_data.get("from"))),
            date=organization.plan_effective_at,
        )

    def _invitation_context(self, session: Session, organization: Organization, invitation_id: str) -> TemplateContext:
        invitation, token = self.new_token(session, invitation_id)
        inviter = session.get(User, invitation.invited_by) if invitation.invited_by else None
        return TemplateContext(
            organization=organization.name,
            role=one_of("role", invitation.role, MEMBERSHIP_ROLES),
            inviter_name=inviter.name if inviter else None,
            date=invitation.expires_at,
            token=token,
            link=self.config.invitation_url.replace(INVITATION_TOKEN_PLACEHOLDER, token)
            if self.config.invitation_url
            else None,
        )

    def _plan_name(self, tier: str) -> str:
        plan = self.catalog.plans.get(tier)
        return plan.name if plan else tier
