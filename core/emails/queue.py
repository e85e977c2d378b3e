"""Mails as rows: what is told to whom because of what, each once. ``core.emails.sender`` sends them.

The mails of an event are written in the transaction in which the relay takes it out of the pending set, which happens
once; the mail of an invitation in the transaction of the invitation. A mail about a plan waits until both billers hold
the change, and a mail that is not true any more when its turn comes is not sent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import uuid4

from sqlalchemy import delete, func, or_, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from core.catalog.plans import Catalog
from core.common import email_addresses
from core.db.models.access import Invitation, Person
from core.db.models.billing_links import BillingLink
from core.db.models.email import Mail, MailKind, MailState
from core.db.models.events import Event
from core.db.models.organizations import Membership, Organization
from core.events.event_types import Change
from core.events.outbox import Pending
from core.ports.spec import PROVIDERS
from core.reconcile import link_status

# Longer than a dialog with the mail server may take, its beginning included (``providers.emails.smtp``).
LEASE: Final = timedelta(minutes=2)
# As many of a team are told; those who joined first.
READERS_AT_MOST: Final = 50
LOOKED_AT_ONCE: Final = 100
SOONEST_LOOK: Final = timedelta(seconds=1)
LATEST_LOOK: Final = timedelta(minutes=1)
GIVEN_UP_ARE_SHOWN: Final = timedelta(days=30)
# Then an address is nowhere but where it belongs; nothing that old is relayed or invited again.
KEPT: Final = timedelta(days=30)
CLEARED_AT_ONCE: Final = 500

_TELLING: Final = frozenset({"organization.plan_changed", "membership.added"})
# Written out, not bound: SQLite uses a partial index only where it reads the index's own condition.
_IS_OPEN: Final = text("mails.state = 'open'")
_IS_GIVEN_UP: Final = text("mails.state = 'given_up'")
_IS_SETTLED: Final = text("mails.state <> 'open'")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A mail that is to be sent now, by whoever holds ``lease``."""

    id: str
    kind: MailKind
    cause: str
    recipient: str
    org_id: str
    invitation_id: str | None
    attempts: int
    lease: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """``reason``: why one that is tried again was not sent yet."""

    waiting: int
    waiting_since: datetime | None
    reason: str | None
    given_up: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenUp:
    id: str
    kind: str
    org_id: str
    recipient: str
    reason: str | None
    given_up_at: datetime | None


def of_events(session: Session, published: Collection[Pending], catalog: Catalog, now: datetime) -> None:
    """What these events have told by mail. Call it where they are marked, with those that were."""
    seqs = [event.seq for event in published if event.type in _TELLING]
    if not seqs:
        return
    events = session.scalars(select(Event).where(Event.seq.in_(seqs)).order_by(Event.seq)).all()
    found = select(Organization).where(Organization.id.in_({event.org_id for event in events}))
    organizations = {row.id: row for row in session.scalars(found) if row.status != "deleted"}
    telling = [
        (event, organization, kind)
        for event in events
        if (organization := organizations.get(event.org_id)) is not None
        and (kind := _kind(event, organization, catalog)) is not None
    ]
    owners = _owners(session, {_member(event) for event, _, kind in telling if kind == "welcome"})
    teams = _teams(session, {event.org_id for event, _, kind in telling if kind != "welcome"})
    rows: list[dict[str, object]] = []
    for event, organization, kind in telling:
        billing = [organization.billing_email] if organization.billing_email else []
        welcome = kind == "welcome"
        readers = owners.get(_member(event), billing) if welcome else [*teams.get(event.org_id, []), *billing]
        wait = {"waits_for_version": None if welcome else organization.billing_version}
        rows += [_row(event.id, kind, event.org_id, reader, now) | wait for reader in _each_once(readers)]
    _insert(session, rows)


def of_invitation(change: Change, invitation: Invitation) -> None:
    """Its newest mail; an earlier one that was not sent by then is overtaken."""
    row = _row(_cause(invitation), "invitation", invitation.org_id, invitation.email, change.now)
    _insert(change.session, [row | {"invitation_id": invitation.id}])


def invitations_since(session: Session, org_id: str, since: datetime) -> dict[str, int]:
    """How many invitations were mailed for an organization, by address, sent or not."""
    rows = session.execute(
        select(Mail.recipient, func.count())
        .where(Mail.org_id == org_id, Mail.kind == "invitation", Mail.created_at >= since)
        .group_by(Mail.recipient)
    )
    return {row[0]: row[1] for row in rows}


def any_due(session: Session, now: datetime) -> bool:
    """A cheap look that takes no lock."""
    return session.scalar(select(Mail.id).where(_IS_OPEN, Mail.next_attempt_at <= now).limit(1)) is not None


def look(session: Session, now: datetime) -> None:
    """Mails that wait for the billers: free those whose change both hold, and look at the others again later."""
    waiting = session.scalars(
        select(Mail)
        .where(_IS_OPEN, Mail.waits_for_version.is_not(None), Mail.next_attempt_at <= now)
        .order_by(Mail.next_attempt_at)
        .limit(LOOKED_AT_ONCE)
        .with_for_update(skip_locked=True)
    ).all()
    links: dict[str, list[BillingLink]] = {mail.org_id: [] for mail in waiting}
    for link in session.scalars(select(BillingLink).where(BillingLink.org_id.in_(links))):
        links[link.org_id].append(link)
    for mail in waiting:
        version = mail.waits_for_version or 0
        if sum(link_status.holds(link, version) for link in links[mail.org_id]) == len(PROVIDERS):
            mail.waits_for_version = None
        else:
            mail.next_attempt_at = now + min(LATEST_LOOK, max(SOONEST_LOOK, (now - mail.created_at) / 4))


def claim(session: Session, now: datetime) -> Claimed | None:
    """The mail that has been due for longest, leased; ``None``: none is due. Closes those that are overtaken."""
    due = (
        select(Mail)
        .where(
            _IS_OPEN,
            Mail.waits_for_version.is_(None),
            Mail.next_attempt_at <= now,
            or_(Mail.lease_until.is_(None), Mail.lease_until < now),
        )
        .order_by(Mail.next_attempt_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    for _ in range(LOOKED_AT_ONCE):
        mail = session.scalars(due).one_or_none()
        if mail is None:
            return None
        if _still_true(session, mail, now):
            return _leased(mail, now)
        mail.state, mail.closed_at = "overtaken", now
        session.flush()
    return None


def sent(session: Session, claimed: Claimed, now: datetime) -> None:
    _close(session, claimed, "sent", now, error=None)


def give_up(session: Session, claimed: Claimed, reason: str, now: datetime) -> None:
    """It cannot be sent; ``reason`` holds neither address nor name."""
    _close(session, claimed, "given_up", now, error=reason)


def put_off(session: Session, claimed: Claimed, reason: str, until: datetime, *, counted: bool) -> None:
    """It is tried again. ``counted``: the failure was this mail's, not the mail server's."""
    _end(
        session,
        claimed,
        error=reason,
        next_attempt_at=until,
        attempts=claimed.attempts + (1 if counted else 0),
    )


def counts(session: Session, now: datetime) -> Counts:
    waiting = session.execute(select(func.count(), func.min(Mail.created_at)).where(_IS_OPEN)).one()
    reason = session.scalar(select(Mail.error).where(_IS_OPEN, Mail.error.is_not(None)).limit(1))
    given_up = session.scalar(select(func.count()).where(_IS_GIVEN_UP, Mail.created_at >= now - GIVEN_UP_ARE_SHOWN))
    return Counts(waiting=waiting[0], waiting_since=waiting[1], reason=reason, given_up=given_up or 0)


def clear(session: Session, now: datetime) -> int:
    """Forget a part of what was settled long ago; returns how many."""
    old = select(Mail.id).where(_IS_SETTLED, Mail.closed_at < now - KEPT).order_by(Mail.closed_at)
    gone = session.scalars(
        delete(Mail)
        .where(Mail.id.in_(old.limit(CLEARED_AT_ONCE)))
        .returning(Mail.id)
        .execution_options(synchronize_session=False)
    )
    return len(gone.all())


def given_up(session: Session, now: datetime, limit: int) -> list[GivenUp]:
    """Those of the last weeks, newest first."""
    rows = session.scalars(
        select(Mail)
        .where(_IS_GIVEN_UP, Mail.created_at >= now - GIVEN_UP_ARE_SHOWN)
        .order_by(Mail.created_at.desc(), Mail.id)
        .limit(limit)
    )
    return [
        GivenUp(
            id=row.id,
            kind=row.kind,
            org_id=row.org_id,
            recipient=row.recipient,
            reason=row.error,
            given_up_at=row.closed_at,
        )
        for row in rows
    ]


def _kind(event: Event, organization: Organization, catalog: Catalog) -> MailKind | None:
    """``None``: nobody is told of it by mail."""
    if event.type == "membership.added":
        # Somebody who joins an organization in the moment of its making has registered it.
        registers = event.data.get("role") == "owner" and event.occurred_at == organization.created_at
        return "welcome" if registers else None
    before, after = catalog.plans.get(str(event.data.get("from"))), catalog.plans.get(str(event.data.get("to")))
    if event.data.get("at") == "period_end":
        return "downgrade_scheduled"
    if event.data.get("from") == event.data.get("to"):
        return "downgrade_taken_back"
    lower = before is not None and after is not None and after.rank < before.rank
    return "downgrade_took_effect" if lower else "plan_upgraded"


def _teams(session: Session, org_ids: Collection[str]) -> Mapping[str, list[str]]:
    """Verified addresses of those who decide about the plan, in the order of joining."""
    rows = session.execute(
        select(Membership.org_id, Person.email)
        .join(Person, Person.user_id == Membership.user_id)
        .where(
            Membership.org_id.in_(org_ids),
            Membership.role.in_(["owner", "billing_admin"]),
            Person.email.is_not(None),
        )
        .order_by(Membership.joined_at, Membership.user_id)
    )
    teams: dict[str, list[str]] = {}
    for org_id, email in rows:
        team = teams.setdefault(org_id, [])
        if email is not None and len(team) < READERS_AT_MOST:
            team.append(email)
    return teams


def _member(event: Event) -> str:
    return str(event.data.get("user_id"))


def _owners(session: Session, user_ids: Collection[str]) -> dict[str, list[str]]:
    """The one verified address of each of whom there is one."""
    rows = session.execute(select(Person.user_id, Person.email).where(Person.user_id.in_(user_ids)))
    return {row[0]: [row[1]] for row in rows if row[1] is not None}


def _each_once(readers: Iterable[str]) -> list[str]:
    return list({email_addresses.key(reader): reader for reader in readers}.values())


def _row(cause: str, kind: MailKind, org_id: str, recipient: str, now: datetime) -> dict[str, object]:
    return {
        "id": str(uuid4()),
        "cause": cause,
        "kind": kind,
        "recipient": recipient,
        "org_id": org_id,
        "invitation_id": None,
        "waits_for_version": None,
        "state": "open",
        "attempts": 0,
        "next_attempt_at": now,
        "created_at": now,
    }


def _insert(session: Session, rows: list[dict[str, object]]) -> None:
    """What is there already stays as it is: nothing may keep the relay from marking its events."""
    if rows:
        dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
        session.execute(dialect.insert(Mail).on_conflict_do_nothing(), rows)


def _cause(invitation: Invitation) -> str:
    return f"{invitation.id}#{invitation.mailed}"


def _still_true(session: Session, mail: Mail, now: datetime) -> bool:
    organization = session.get_one(Organization, mail.org_id)
    if organization.status == "deleted":
        return False
    if mail.invitation_id is not None:
        invitation = session.get_one(Invitation, mail.invitation_id)
        return invitation.state == "open" and invitation.expires_at > now and mail.cause == _cause(invitation)
    if mail.kind == "welcome":
        return True
    told = session.scalar(select(Event.data).where(Event.id == mail.cause)) or {}
    if mail.kind == "downgrade_scheduled":
        return organization.pending_plan_tier == told.get("to")
    if mail.kind == "downgrade_taken_back":
        return (organization.plan_tier, organization.pending_plan_tier) == (told.get("to"), None)
    return organization.plan_tier == told.get("to")


def _leased(mail: Mail, now: datetime) -> Claimed:
    lease = str(uuid4())
    mail.lease_token, mail.lease_until = lease, now + LEASE
    return Claimed(
        id=mail.id,
        kind=mail.kind,
        cause=mail.cause,
        recipient=mail.recipient,
        org_id=mail.org_id,
        invitation_id=mail.invitation_id,
        attempts=mail.attempts,
        lease=lease,
    )


def _close(session: Session, claimed: Claimed, state: MailState, now: datetime, *, error: str | None) -> None:
    _end(session, claimed, state=state, closed_at=now, error=error)


def _end(session: Session, claimed: Claimed, **values: object) -> None:
    """Whoever lost the lease changes nothing: another one has sent it again, and says how that went."""
    session.execute(
        update(Mail)
        .where(Mail.id == claimed.id, Mail.lease_token == claimed.lease)
        .values(**values, lease_token=None, lease_until=None)
        .execution_options(synchronize_session=False)
    )
