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
from core.db.models.access import Invitation, Person
from core.db.models.events import Event
from core.db.models.organizations import ROLES, Organization
from core.emails import queue, templates
from core.emails.queue import Claimed
from core.emails.templates import Facts

log = structlog.get_logger()

# About eight hours in all: a mail server that says "later" for longer means no.
ATTEMPTS_AT_MOST: Final = 10
FIRST_WAIT: Final = timedelta(minutes=1)
LONGEST_WAIT: Final = timedelta(hours=4)
TOKEN: Final = "{token}"  # noqa: S105 - where it goes


class MailError(Exception):
    """``reason``: the mail server's code and our words; neither address nor name nor what the server wrote."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class MailServerAwayError(MailError):
    """No mail goes through now, whosever it is."""


class MailPostponedError(MailError):
    """This mail was not taken, or nobody knows; the next one may be."""


class MailRefusedError(MailError):
    """This mail is never taken."""


class Line(Protocol):
    """One connection to the mail server."""

    def send(self, message: EmailMessage) -> None:
        """Returns once it was taken. Raises ``MailError``."""


class MailServer(Protocol):
    def line(self) -> AbstractContextManager[Line]:
        """Raises ``MailServerAwayError``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """``page``: the page that accepts invitations, ``{token}`` in it; ``None``: mails hold the token itself."""

    address: Address
    page: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Posted:
    """What became of the mails of one run; ``away`` says why it ended early."""

    sent: int = 0
    away: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """Sends what is due. ``new_token`` makes one more token for an invitation, by its id, in the given transaction."""

    database: Database
    catalog: Catalog
    clock: Clock
    sender: Sender
    server: MailServer
    new_token: Callable[[Session, str], tuple[Invitation, str]]

    def is_due(self) -> bool:
        with self.database.read() as session:
            return queue.any_due(session, self.clock())

    def run(self, seconds: float) -> Posted:
        """Send until nothing is due, at most so long and one mail more."""
        ends = time.monotonic() + seconds
        with self.database.write() as session:
            queue.look(session, self.clock())
        claimed, sent = self._claim(), 0
        if claimed is None:
            return Posted()
        try:
            with self.server.line() as line:
                while claimed is not None:
                    sent += self._send(line, claimed)
                    claimed = self._claim() if time.monotonic() < ends else None
        except MailServerAwayError as error:
            if claimed is not None:
                self._put_off(claimed, error.reason, counted=False)
            log.warning("mail_server_away", reason=error.reason)
            return Posted(sent=sent, away=error.reason)
        return Posted(sent=sent)

    def _claim(self) -> Claimed | None:
        with self.database.write() as session:
            return queue.claim(session, self.clock())

    def _send(self, line: Line, claimed: Claimed) -> int:
        """1: it was taken. Raises ``MailServerAwayError``."""
        try:
            line.send(self._letter(claimed))
        except MailPostponedError as error:
            if claimed.attempts + 1 < ATTEMPTS_AT_MOST:
                self._put_off(claimed, error.reason, counted=True)
            else:
                self._give_up(claimed, f"{error.reason}, {ATTEMPTS_AT_MOST} times")
            return 0
        except MailRefusedError as error:
            self._give_up(claimed, error.reason)
            return 0
        with self.database.write() as session:
            queue.sent(session, claimed, self.clock())
        log.info("mail_sent", mail=claimed.id, kind=claimed.kind, org_id=claimed.org_id)
        return 1

    def _put_off(self, claimed: Claimed, reason: str, *, counted: bool) -> None:
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2**claimed.attempts) if counted else FIRST_WAIT
        with self.database.write() as session:
            queue.put_off(session, claimed, reason, self.clock() + wait, counted=counted)
        log.info("mail_put_off", mail=claimed.id, kind=claimed.kind, org_id=claimed.org_id, reason=reason)

    def _give_up(self, claimed: Claimed, reason: str) -> None:
        with self.database.write() as session:
            queue.give_up(session, claimed, reason, self.clock())
        log.warning("mail_given_up", mail=claimed.id, kind=claimed.kind, org_id=claimed.org_id, reason=reason)

    def _letter(self, claimed: Claimed) -> EmailMessage:
        """Written anew at each try; an invitation's with a token of its own, whose hash is committed by then."""
        if not email_addresses.addressable(claimed.recipient):
            message = "the address is none that a mail can be sent to"
            raise MailRefusedError(message)
        with self.database.write() if claimed.invitation_id else self.database.read() as session:
            facts = self._facts(session, claimed)
        letter = templates.write(
            claimed.kind,
            facts,
            sender=self.sender.address,
            recipient=claimed.recipient,
            message_id=f"<{claimed.kind}.{claimed.id}@{self.sender.address.domain}>",
        )
        return templates.dated(letter, self.clock())

    def _facts(self, session: Session, claimed: Claimed) -> Facts:
        organization = session.get_one(Organization, claimed.org_id)
        if claimed.invitation_id is not None:
            return self._invitation(session, organization, claimed.invitation_id)
        told = session.scalar(select(Event.data).where(Event.id == claimed.cause)) or {}
        if claimed.kind == "welcome":
            reader = session.get(Person, str(told.get("user_id")))
            return Facts(
                organization=organization.name,
                plan=self._plan(organization.plan_tier),
                reader=reader.name if reader else None,
            )
        return Facts(
            organization=organization.name,
            plan=self._plan(str(told.get("to"))),
            former_plan=self._plan(str(told.get("from"))),
            moment=organization.plan_effective_at,
        )

    def _invitation(self, session: Session, organization: Organization, invitation_id: str) -> Facts:
        invitation, token = self.new_token(session, invitation_id)
        inviter = session.get(Person, invitation.invited_by) if invitation.invited_by else None
        return Facts(
            organization=organization.name,
            role=one_of("role", invitation.role, ROLES),
            inviter=inviter.name if inviter else None,
            moment=invitation.expires_at,
            token=token,
            link=self.sender.page.replace(TOKEN, token) if self.sender.page else None,
        )

    def _plan(self, tier: str) -> str:
        plan = self.catalog.plans.get(tier)
        return plan.name if plan else tier
