"""Email sender: leases an email, sends it, and records the result. No transaction is open while it is sent.

A lease in the row keeps two workers from sending the same email. If a process is killed after the SMTP server accepted
the email and before our commit, the email is sent again with the same Message-ID, so that mailboxes recognize it.
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
from core.common.error_place import raised_at
from core.common.validation import one_of
from core.db.database import DATABASE_UNAVAILABLE_ERRORS, Database
from core.db.models.access import Invitation, User
from core.db.models.events import Event
from core.db.models.organizations import MEMBERSHIP_ROLES, Management, Organization
from core.emails import operations_digest, queue, templates
from core.emails.queue import LeasedEmail
from core.emails.templates import TemplateContext

log = structlog.get_logger()

# About eight hours in all. An SMTP server that defers an email for longer counts as rejecting it.
MAX_EMAIL_ATTEMPTS: Final = 10
MIN_EMAIL_RETRY_DELAY: Final = timedelta(minutes=1)
MAX_EMAIL_RETRY_DELAY: Final = timedelta(hours=4)
INVITATION_TOKEN_PLACEHOLDER: Final = "{token}"  # noqa: S105 - the place for the token


class EmailError(Exception):
    """``reason``: the SMTP server's code and our own words, without addresses, names or the server's text."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class EmailServerUnavailableError(EmailError):
    """The server accepts no email at all now."""


class EmailDeferredError(EmailError):
    """This email was not accepted, or the outcome is unknown. The next email may be accepted."""


class EmailRejectedError(EmailError):
    """This email will never be accepted."""


class EmailConnection(Protocol):
    """One connection to the SMTP server."""

    def send(self, message: EmailMessage) -> None:
        """Returns when the server has accepted the email. Raises ``EmailError``."""


class EmailTransport(Protocol):
    def connect(self) -> AbstractContextManager[EmailConnection]:
        """Raises ``EmailServerUnavailableError``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SenderConfig:
    """``invitation_url``: the page that accepts invitations, with ``{token}`` in it.

    Without it, the emails contain the token itself.
    """

    from_address: Address
    invitation_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SendSummary:
    """The result of one run. ``unavailable_reason`` says why it ended early."""

    sent: int = 0
    unavailable_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmailSender:
    """Sends due emails. ``new_token`` creates a token for the invitation with this id, in the given transaction."""

    database: Database
    catalog: Catalog
    clock: Clock
    config: SenderConfig
    transport: EmailTransport
    new_token: Callable[[Session, str], tuple[Invitation, str]]
    management: Management = "manage"
    """The mode of organizations without one of their own."""

    def has_due(self) -> bool:
        with self.database.read() as session:
            return queue.any_due(session, self.clock())

    def run(self, seconds: float) -> SendSummary:
        """Sends until no email is due or the time is over. The email that is being sent then is finished."""
        deadline = time.monotonic() + seconds
        with self.database.write() as session:
            queue.release_ready(session, self.clock(), self.management)
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
        """Returns the number of emails that were accepted, 0 or 1. Raises ``EmailServerUnavailableError``."""
        try:
            connection.send(self._render(email))
        except EmailDeferredError as error:
            self._defer(email, error.reason)
            return 0
        except EmailRejectedError as error:
            self._fail(email, error.reason)
            return 0
        except Exception as error:
            if isinstance(error, (EmailServerUnavailableError, *DATABASE_UNAVAILABLE_ERRORS)):
                raise
            # Only the class and the place: the text may have an address.
            self._defer(email, f"the program failed unexpectedly ({type(error).__name__} at {raised_at(error)})")
            return 0
        with self.database.write() as session:
            queue.mark_sent(session, email, self.clock())
        log.info("email_sent", email_id=email.id, kind=email.kind, org_id=email.org_id)
        return 1

    def _defer(self, email: LeasedEmail, reason: str) -> None:
        if email.attempts + 1 < MAX_EMAIL_ATTEMPTS:
            self._reschedule(email, reason, count_attempt=True)
        else:
            self._fail(email, f"{reason} (after {MAX_EMAIL_ATTEMPTS} attempts)")

    def _reschedule(self, email: LeasedEmail, reason: str, *, count_attempt: bool) -> None:
        delay = (
            min(MAX_EMAIL_RETRY_DELAY, MIN_EMAIL_RETRY_DELAY * 2**email.attempts)
            if count_attempt
            else MIN_EMAIL_RETRY_DELAY
        )
        with self.database.write() as session:
            queue.reschedule(session, email, reason, self.clock() + delay, count_attempt=count_attempt)
        log.info("email_rescheduled", email_id=email.id, kind=email.kind, org_id=email.org_id, reason=reason)

    def _fail(self, email: LeasedEmail, reason: str) -> None:
        with self.database.write() as session:
            queue.fail(session, email, reason, self.clock())
        log.warning("email_failed", email_id=email.id, kind=email.kind, org_id=email.org_id, reason=reason)

    def _render(self, email: LeasedEmail) -> EmailMessage:
        """Renders the email anew at each attempt. An invitation gets its own token, whose hash is committed before."""
        if not email_addresses.is_mailable(email.recipient):
            reason = "the address cannot receive email"
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
        if email.kind == "operations_digest":
            return operations_digest.context(session, self.clock())
        organization = session.get_one(Organization, email.org_id)
        if email.invitation_id is not None:
            return self._invitation_context(session, organization, email.invitation_id)
        event_data = session.scalar(select(Event.data).where(Event.id == email.cause)) or {}
        if email.kind == "welcome":
            return TemplateContext(organization=organization.name, plan=self._plan_name(organization.plan_tier))
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
