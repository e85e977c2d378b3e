"""Webhooks of the billers: each stored once, then counted on the link that it is about, which looks there in a turn.

A hint says where to look and never how things are: what it claims is not kept, its time is not compared. So one that
comes twice, late, out of order or not at all does no harm. The API that stores it needs no broker: the relay finds the
row within moments, as it finds events, and has it handled in the queue; what it missed, the sweep handles.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from sqlalchemy import Boolean, ColumnElement, case, delete, func, literal_column, or_, select, text, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from core.common.clock import Clock
from core.db.database import Database
from core.db.models.billing_links import LINK_HAS_WORK, BillingLink
from core.db.models.inbox import Concern, Hint, HintState
from core.db.models.providers import BillerStanding
from core.events import outbox
from core.organizations import commands
from core.organizations.links import SWEEP_GRACE
from core.ports.spec import PROVIDERS, Provider

KEPT: Final = timedelta(days=30)
"""Longer than any biller sends one again: Stripe for three days, Lago by hand for as long as it shows it."""
# One that was handed to the broker and not handled: the broker lost it, or its worker died.
HANDED_OVER: Final = timedelta(seconds=15)
AT_ONCE: Final = 200
IS_STORED: Final = "state = 'stored'"  # written out: SQLite uses a partial index only where it reads its condition


class NotGenuineError(Exception):
    """Not signed by the biller, signed too long ago, or changed since."""


class UnreadableError(Exception):
    """Signed, and not what the biller documents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What is kept of a webhook: ids and words of the biller's own. ``concern`` None: it is of no interest here.

    ``org_id``: where it names an organization of ours. ``ours``: a request of our own caused it.
    """

    provider: Provider
    id: str
    type: str
    concern: Concern | None
    object_id: str | None = None
    customer_id: str | None = None
    org_id: str | None = None
    code: str | None = None
    account_id: str | None = None
    livemode: bool | None = None
    ours: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """``repeated``: it was there already, with this state."""

    state: HintState
    reason: str | None
    repeated: bool


class About(NamedTuple):
    """The link that a hint is about."""

    provider: Provider
    org_id: str


class _Name(NamedTuple):
    provider: str
    id: str


def keep(session: Session, told: Told, now: datetime) -> Kept:
    """Store it, and ring for the relay when that commits. One of another account or mode is refused, and seen so."""
    state, reason = _verdict(session, told)
    values = {
        "provider": told.provider,
        "id": told.id,
        "type": told.type,
        "concern": told.concern,
        "object_id": told.object_id,
        "customer_id": told.customer_id,
        "org_id": told.org_id,
        "code": told.code,
        "account_id": told.account_id,
        "livemode": told.livemode,
        "received_at": now,
        "state": state,
        "reason": reason,
        "due_at": now,
    }
    on_postgres = session.get_bind().dialect.name == "postgresql"
    statement = (postgresql if on_postgres else sqlite).insert(Hint).values(values).on_conflict_do_nothing()
    if session.execute(statement.returning(Hint.id)).one_or_none() is None:
        there = session.get_one(Hint, (told.provider, told.id))
        return Kept(state=there.state, reason=there.reason, repeated=True)
    if state == "stored" and on_postgres:
        session.execute(text(f"NOTIFY {outbox.CHANNEL}"))
    return Kept(state=state, reason=reason, repeated=False)


def any_due(session: Session, now: datetime) -> bool:
    """A cheap look that takes no lock."""
    return session.scalar(select(Hint.id).where(text(IS_STORED), Hint.due_at <= now).limit(1)) is not None


def any_old(session: Session, now: datetime) -> bool:
    return session.scalar(select(Hint.id).where(*_is_old(now)).limit(1)) is not None


def hand_over(session: Session, now: datetime) -> int:
    """How many somebody must be told of; they are not due again for a while."""
    due = (
        select(Hint.provider, Hint.id)
        .where(text(IS_STORED), Hint.due_at <= now)
        .order_by(Hint.due_at)
        .limit(AT_ONCE)
        .with_for_update(skip_locked=True)
        # A subquery may be run again for every row and lock more than the limit; this runs once.
        .cte("due")
    )
    taken = session.execute(
        update(Hint)
        .where(tuple_(Hint.provider, Hint.id).in_(select(due.c.provider, due.c.id)))
        .values(due_at=now + HANDED_OVER)
        .returning(Hint.id)
        .execution_options(synchronize_session=False)
    )
    return len(taken.all())


def take(database: Database, clock: Clock, limit: int = AT_ONCE) -> tuple[int, list[About]]:
    """Handle what is stored, oldest first, one organization after the other.

    Returns how many there were, and the links that have to look now: each once, however many hints were about it.
    """
    with database.read() as session:
        stored = select(Hint).where(text(IS_STORED)).order_by(Hint.due_at, Hint.id).limit(limit)
        hints = list(session.scalars(stored))
        about = _about(session, hints)
    strangers = [hint for hint in hints if _name(hint) not in about]
    if strangers:
        with database.write() as session:
            _end(session, strangers, "ignored", "it is about no customer of ours")
    grouped: dict[About, list[Hint]] = {}
    for hint in hints:
        if (link := about.get(_name(hint))) is not None:
            grouped.setdefault(link, []).append(hint)
    rings = []
    for link, told in grouped.items():
        with database.write() as session:
            if _count(session, link, told, clock()):
                rings.append(link)
    return len(hints), rings


def drop_old(database: Database, clock: Clock, limit: int = AT_ONCE) -> int:
    """Forget those that are done with and that no biller sends again."""
    with database.write() as session:
        old = select(Hint.provider, Hint.id).where(*_is_old(clock())).order_by(Hint.received_at).limit(limit).cte("old")
        gone = session.execute(
            delete(Hint)
            .where(tuple_(Hint.provider, Hint.id).in_(select(old.c.provider, old.c.id)))
            .returning(Hint.id)
            .execution_options(synchronize_session=False)
        )
        return len(gone.all())


def _is_old(now: datetime) -> tuple[ColumnElement[bool], ...]:
    return Hint.received_at < now - KEPT, Hint.state != "stored"


def _verdict(session: Session, told: Told) -> tuple[HintState, str | None]:
    ours = session.get_one(BillerStanding, told.provider)
    if None not in {told.account_id, ours.account_id} and told.account_id != ours.account_id:
        return "refused", f"it is of the account {told.account_id}, this database belongs to {ours.account_id}"
    if None not in {told.livemode, ours.livemode} and told.livemode != ours.livemode:
        mode = {True: "live mode", False: "test mode"}
        theirs, mine = mode[bool(told.livemode)], mode[bool(ours.livemode)]
        return "refused", f"it is of {theirs}, this database belongs to {mine}"
    if told.concern is None:
        return "ignored", "nothing is looked after for this type"
    if told.ours:
        return "ignored", "our own request caused it"
    return "stored", None


def _about(session: Session, hints: Collection[Hint]) -> dict[_Name, About]:
    """By the customer; by the organization that it names where the link has not heard of its customer yet."""
    about: dict[_Name, About] = {}
    for provider in PROVIDERS:
        here = [hint for hint in hints if hint.provider == provider]
        if not here:
            continue
        customers = {hint.customer_id for hint in here} - {None}
        named = {hint.org_id for hint in here} - {None}
        rows = session.execute(
            select(BillingLink.org_id, BillingLink.customer_id).where(
                BillingLink.provider == provider,
                or_(BillingLink.customer_id.in_(customers), BillingLink.org_id.in_(named)),
            )
        ).all()
        by_customer = {row.customer_id: row.org_id for row in rows}
        by_name = {row.org_id: row.org_id for row in rows}
        for hint in here:
            org_id = by_customer.get(hint.customer_id) if hint.customer_id else None
            org_id = org_id or by_name.get(hint.org_id)
            if org_id is not None:
                about[_name(hint)] = About(provider, org_id)
    return about


def _count(session: Session, about: About, told: Collection[Hint], now: datetime) -> bool:
    """Whether the link must look now. Under the organization's lock: others may have handled some meanwhile."""
    organization = commands.lock(session, about.org_id)
    hints = session.scalars(
        select(Hint)
        .where(tuple_(Hint.provider, Hint.id).in_([_name(each) for each in told]), text(IS_STORED))
        .order_by(Hint.received_at)  # of a payer the later word counts
    ).all()
    link = session.get_one(BillingLink, (about.org_id, about.provider))
    if organization is None or organization.status == "deleted":
        _end(session, hints, "ignored", "the organization is deleted: nothing of it is looked after")
        return False
    known = [hint for hint in hints if _says_nothing_new(hint, link)]
    _end(session, known, "ignored", "it is what this link knows of its subscription")
    news = [hint for hint in hints if hint not in known]
    if not news:
        return False
    waits = "it is looked at when its link, which waits for a person, goes on" if link.state != "open" else None
    _end(session, news, "handled", waits)
    session.execute(
        update(BillingLink)
        .where(BillingLink.org_id == about.org_id, BillingLink.provider == about.provider)
        .values(_counted(link, news, now))
        .execution_options(synchronize_session=False)
    )
    for hint in news:
        hint.org_id = about.org_id
    return waits is None


def _says_nothing_new(hint: Hint, link: BillingLink) -> bool:
    """That the one we hold began, which we made; or that another one ended, ours before an upgrade above all."""
    if hint.concern == "began":
        return hint.object_id is not None and hint.object_id == link.subscription_id
    return hint.concern == "ended" and hint.object_id != link.subscription_id


def _counted(link: BillingLink, hints: Iterable[Hint], now: datetime) -> dict[str, Any]:
    """What is told of a payment is shown once a look has seen it; of a payer that is not taken nobody can be asked."""
    has_work = literal_column(f"({LINK_HAS_WORK})", Boolean)
    values: dict[str, Any] = {
        "hinted": BillingLink.hinted + 1,
        "sweep_at": case((has_work, BillingLink.sweep_at), else_=now + SWEEP_GRACE),
    }
    payment = link.payment
    for hint in hints:
        if hint.concern in {"failed", "refused"}:
            values["payment_code"] = hint.code
        if hint.concern == "refused" and payment is None:
            payment = "refused"
            values |= {"payment": payment, "payment_since": now}
        if hint.concern == "taken" and payment == "refused":
            payment = None
            values |= {"payment": None, "payment_since": None, "payment_code": None}
    return values


def _end(session: Session, hints: Iterable[Hint], state: HintState, reason: str | None) -> None:
    names = [_name(hint) for hint in hints]
    if names:
        session.execute(
            update(Hint)
            .where(tuple_(Hint.provider, Hint.id).in_(names), text(IS_STORED))
            .values(state=state, reason=reason)
            .execution_options(synchronize_session=False)
        )


def _name(hint: Hint) -> _Name:
    return _Name(hint.provider, hint.id)


def counts(session: Session) -> Mapping[HintState, int]:
    """How many there are in each state."""
    return {row[0]: row[1] for row in session.execute(select(Hint.state, func.count()).group_by(Hint.state))}
