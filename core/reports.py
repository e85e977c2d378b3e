"""What people ask of the rows: who is in sync, who is not and why, what happens next, and what other services sent.

Reads only: no biller and no broker is needed for an answer, and nothing here locks a row.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Literal

from sqlalchemy import ColumnElement, func, or_, select, text
from sqlalchemy.orm import Session

from core import billers, hints
from core.billers import Stop
from core.figures import Comparison, comparison
from core.gateways import PROVIDERS, Provider
from core.models import (
    LINK_IS_BEHIND,
    BillerStanding,
    BillingLink,
    Event,
    Hint,
    HintState,
    Membership,
    Organization,
    Payment,
    ReceivedEvent,
)
from core.organizations import name_key
from core.sync import WAITING_FOR_PAYER

Standing = Literal["in_sync", "working", "waiting", "stopped", "retrying", "queued", "parked", "held"]

SHORTEST_BEGINNING = 8  # "org_" and four more
CLOSE_AT_MOST = 5
NAMES_COMPARED = 5_000
TROUBLES_AT_MOST = 20

_IS_BEHIND = text(f"state = 'open' AND ({LINK_IS_BEHIND})")  # these names stand in no other table
_NEEDS_A_PERSON = BillingLink.state != "open"
_HELD = select(BillingLink.org_id).where(BillingLink.state == "held").distinct()
# A webhook's state in the words that are used for what other services send.
_VERDICTS: dict[HintState, str] = {
    "stored": "waiting",
    "handled": "accepted",
    "refused": "refused",
    "ignored": "ignored",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkReport:
    """One organization at one biller. ``next_at``: when it is tried next by itself; None: at once, or never.

    ``waiting`` is no error: the other biller goes first. ``retrying`` has failed and is tried again by itself.
    ``stopped``: its biller is, so nothing of it is tried; ``next_at`` is the biller's next probe then.
    """

    provider: Provider
    standing: Standing
    customer_id: str | None
    subscription_id: str | None
    plan_code: str | None
    next_plan_code: str | None
    synced_at: datetime | None
    next_at: datetime | None
    attempts: int
    error_kind: str | None
    error_code: str | None
    error_message: str | None
    error_request_id: str | None
    error_at: datetime | None
    payment: Payment | None
    """What is wrong with paying there; no reason to wait for anything."""
    payment_since: datetime | None
    payment_code: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganizationReport:
    id: str
    name: str
    plan_tier: str
    pending_plan_tier: str | None
    plan_effective_at: datetime | None
    status: str
    members: int
    created_at: datetime
    updated_at: datetime
    links: Mapping[Provider, LinkReport]

    @property
    def in_sync(self) -> bool:
        return all(link.standing == "in_sync" for link in self.links.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """``total`` counts those beyond the page too."""

    organizations: list[OrganizationReport]
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """One biller and its links. ``behind_since``: the last change of the organization that has waited longest.

    ``account_id``: whose key it must be; None: nothing was asked there yet. ``stop`` None: it is not stopped.
    """

    in_sync: int
    behind: int
    parked: int
    behind_since: datetime | None
    account_id: str | None
    livemode: bool | None
    stop: Stop | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Links that fail alike. ``message`` is one of theirs."""

    provider: str
    state: str
    kind: str
    code: str | None
    links: int
    since: datetime | None
    message: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    organizations: int
    billers: Mapping[Provider, Counts]
    troubles: list[Trouble]
    unpublished: int
    unpublished_since: datetime | None
    received: Mapping[str, int]
    comparison: Comparison | None

    @property
    def in_sync(self) -> bool:
        return not self.unpublished and all(not (each.behind or each.parked) for each in self.billers.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """A link that waits for a person."""

    org_id: str
    name: str
    link: LinkReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What another service sent, or a biller by webhook, and what became of it."""

    source: str
    id: str
    type: str | None
    subject: str | None
    verdict: str
    reason: str | None
    occurred_at: datetime | None
    received_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    id: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """The one organization that a word means; else those that it may have meant, several where it is ambiguous."""

    found: Named | None
    close: list[Named]
    ambiguous: bool = False


def overview(session: Session) -> Overview:
    unpublished, since = session.execute(
        select(func.count(), func.min(Event.occurred_at)).where(Event.published_at.is_(None))
    ).one()
    received = session.execute(select(ReceivedEvent.verdict, func.count()).group_by(ReceivedEvent.verdict))
    return Overview(
        organizations=session.scalar(select(func.count(Organization.id)).where(Organization.status != "deleted")) or 0,
        billers=_counts(session),
        troubles=_troubles(session),
        unpublished=unpublished,
        unpublished_since=since,
        received=_together({row[0]: row[1] for row in received}, hints.counts(session)),
        comparison=comparison(session),
    )


def organizations(session: Session, now: datetime, *, plan: str | None, search: str | None, limit: int) -> Page:
    """Those that are not deleted, oldest first; ``search`` is a part of the name, letter case aside."""
    conditions: list[ColumnElement[bool]] = [Organization.status != "deleted"]
    if plan is not None:
        conditions.append(or_(Organization.plan_tier == plan, Organization.pending_plan_tier == plan))
    if search is not None:
        conditions.append(Organization.name_key.contains(name_key(search), autoescape=True))
    rows = session.scalars(
        select(Organization).where(*conditions).order_by(Organization.created_at, Organization.id).limit(limit)
    ).all()
    total = session.scalar(select(func.count(Organization.id)).where(*conditions)) or 0
    return Page(organizations=_reports(session, rows, now), total=total)


def organization(session: Session, org_id: str, now: datetime) -> OrganizationReport | None:
    row = session.get(Organization, org_id)
    return None if row is None else _reports(session, [row], now)[0]


def find(session: Session, word: str) -> Lookup:
    """By id, by name (as unique names are compared), or by the beginning of an id that no other id shares."""
    exact = session.get(Organization, word)
    if exact is not None:
        return Lookup(found=Named(id=exact.id, name=exact.name), close=[])
    named = _named(session, Organization.name_key == name_key(word), Organization.status != "deleted")
    named = named or _named(session, Organization.name_key == name_key(word))
    if not named and len(word) >= SHORTEST_BEGINNING and word.startswith("org_"):
        named = _named(session, Organization.id.startswith(word, autoescape=True))
    if len(named) == 1:
        return Lookup(found=named[0], close=[])
    return Lookup(found=None, close=named or _close(session, word), ambiguous=bool(named))


def stopped(session: Session, now: datetime, limit: int) -> tuple[list[Stopped], int]:
    """Links that wait for a person, longest first, and how many there are beyond the limit too."""
    rows = session.execute(
        select(BillingLink, Organization.name)
        .join(Organization, Organization.id == BillingLink.org_id)
        .where(_NEEDS_A_PERSON)
        .order_by(BillingLink.error_at, BillingLink.org_id, BillingLink.provider)
        .limit(limit)
    )
    found = [Stopped(org_id=link.org_id, name=name, link=link_report(link, now)) for link, name in rows]
    return found, session.scalar(select(func.count()).select_from(BillingLink).where(_NEEDS_A_PERSON)) or 0


def stuck(session: Session, after: str, limit: int, error: str | None = None) -> list[str]:
    """Organizations beyond the id ``after`` that are parked, or that met the error of this code or kind.

    One that an import left to a person's decision is only among those of an error that is named.
    """
    parked = (BillingLink.state == "parked") & BillingLink.org_id.not_in(_HELD)
    met = or_(BillingLink.error_code == error, BillingLink.error_kind == error)
    rows = select(BillingLink.org_id).distinct().where(parked if error is None else met, BillingLink.org_id > after)
    return list(session.scalars(rows.order_by(BillingLink.org_id).limit(limit)))


def count_held(session: Session) -> int:
    """Organizations that wait for a person to decide what an import could not read."""
    return session.scalar(select(func.count()).select_from(_HELD.subquery())) or 0


def error_words(session: Session) -> list[str]:
    """The codes and kinds that links have met and not got over."""
    rows = session.execute(select(BillingLink.error_code, BillingLink.error_kind).distinct().limit(200))
    return sorted({word for row in rows for word in row if word})


def messages(session: Session, verdicts: Collection[str], limit: int) -> tuple[list[Message], int]:
    """Of other services and of billers, newest first, and how many there are beyond the limit too."""
    events, of_services = _events(session, verdicts, limit)
    webhooks, of_billers = _webhooks(session, verdicts, limit)
    found = sorted([*events, *webhooks], key=lambda each: each.received_at, reverse=True)
    return found[:limit], of_services + of_billers


def _events(session: Session, verdicts: Collection[str], limit: int) -> tuple[list[Message], int]:
    condition = ReceivedEvent.verdict.in_(verdicts)
    rows = session.scalars(
        select(ReceivedEvent).where(condition).order_by(ReceivedEvent.received_at.desc()).limit(limit)
    )
    found = [
        Message(
            source=row.source,
            id=row.id,
            type=row.type,
            subject=row.subject,
            verdict=row.verdict,
            reason=row.reason,
            occurred_at=row.occurred_at,
            received_at=row.received_at,
        )
        for row in rows
    ]
    return found, session.scalar(select(func.count()).select_from(ReceivedEvent).where(condition)) or 0


def _webhooks(session: Session, verdicts: Collection[str], limit: int) -> tuple[list[Message], int]:
    condition = Hint.state.in_([state for state, verdict in _VERDICTS.items() if verdict in verdicts])
    rows = session.scalars(select(Hint).where(condition).order_by(Hint.received_at.desc()).limit(limit))
    found = [
        Message(
            source=row.provider,
            id=row.id,
            type=row.type,
            subject=row.org_id or row.customer_id or row.object_id,
            verdict=_VERDICTS[row.state],
            reason=row.reason,
            occurred_at=None,
            received_at=row.received_at,
        )
        for row in rows
    ]
    return found, session.scalar(select(func.count()).select_from(Hint).where(condition)) or 0


def _together(received: Mapping[str, int], webhooks: Mapping[HintState, int]) -> dict[str, int]:
    counts = dict(received)
    for state, number in webhooks.items():
        counts[_VERDICTS[state]] = counts.get(_VERDICTS[state], 0) + number
    return counts


def _counts(session: Session) -> dict[Provider, Counts]:
    total = _by_provider(session)
    parked = _by_provider(session, _NEEDS_A_PERSON)
    behind = {
        row[0]: (row[1], row[2])
        for row in session.execute(
            select(BillingLink.provider, func.count(), func.min(Organization.updated_at))
            .join(Organization, Organization.id == BillingLink.org_id)
            .where(_IS_BEHIND)
            .group_by(BillingLink.provider)
        )
    }
    standings = {row.provider: row for row in session.scalars(select(BillerStanding))}
    counts: dict[Provider, Counts] = {}
    for provider in PROVIDERS:
        late, since = behind.get(provider, (0, None))
        stuck_there = parked.get(provider, 0)
        in_sync = max(0, total.get(provider, 0) - late - stuck_there)
        counts[provider] = Counts(
            in_sync=in_sync,
            behind=late,
            parked=stuck_there,
            behind_since=since,
            account_id=standings[provider].account_id,
            livemode=standings[provider].livemode,
            stop=billers.stop_of(standings[provider]),
        )
    return counts


def _by_provider(session: Session, *conditions: ColumnElement[bool]) -> dict[str, int]:
    rows = session.execute(select(BillingLink.provider, func.count()).where(*conditions).group_by(BillingLink.provider))
    return {row[0]: row[1] for row in rows}


def _troubles(session: Session) -> list[Trouble]:
    """Those of links that need a person, then those that are tried again; the most frequent first."""
    kinds = (BillingLink.provider, BillingLink.state, BillingLink.error_kind, BillingLink.error_code)
    rows = session.execute(
        select(*kinds, func.count().label("links"), func.min(BillingLink.error_at), func.min(BillingLink.error_message))
        .where(BillingLink.error_kind.is_not(None), BillingLink.error_kind != WAITING_FOR_PAYER)
        .group_by(*kinds)
        .order_by(BillingLink.state.desc(), text("links DESC"), *kinds)
        .limit(TROUBLES_AT_MOST)
    )
    return [
        Trouble(
            provider=row[0], state=row[1], kind=str(row[2]), code=row[3], links=row[4], since=row[5], message=row[6]
        )
        for row in rows
    ]


def _reports(session: Session, rows: Collection[Organization], now: datetime) -> list[OrganizationReport]:
    ids = [row.id for row in rows]
    members = {
        row[0]: row[1]
        for row in session.execute(
            select(Membership.org_id, func.count()).where(Membership.org_id.in_(ids)).group_by(Membership.org_id)
        )
    }
    stops = billers.stops(session)
    links: dict[str, dict[Provider, LinkReport]] = {org_id: {} for org_id in ids}
    for link in session.scalars(select(BillingLink).where(BillingLink.org_id.in_(ids))):
        report = link_report(link, now, stops)
        links[link.org_id][report.provider] = report
    return [
        OrganizationReport(
            id=row.id,
            name=row.name,
            plan_tier=row.plan_tier,
            pending_plan_tier=row.pending_plan_tier,
            plan_effective_at=row.plan_effective_at,
            status=row.status,
            members=members.get(row.id, 0),
            created_at=row.created_at,
            updated_at=row.updated_at,
            links={provider: links[row.id][provider] for provider in PROVIDERS if provider in links[row.id]},
        )
        for row in rows
    ]


def link_report(link: BillingLink, now: datetime, stops: Mapping[Provider, Stop] = MappingProxyType({})) -> LinkReport:
    """``stops``: the billers that are stopped, for what waits for them."""
    provider: Provider = "stripe" if link.provider == "stripe" else "lago"
    standing, stop = _standing(link, now), stops.get(provider)
    waits = stop is not None and standing in {"retrying", "queued"}
    return LinkReport(
        provider=provider,
        standing="stopped" if waits else standing,
        customer_id=link.customer_id,
        subscription_id=link.subscription_id,
        plan_code=link.applied_plan,
        next_plan_code=link.applied_next_plan,
        synced_at=link.synced_at,
        next_at=stop.probe_at if stop is not None and waits else _next_at(link, standing, now),
        attempts=link.attempts,
        error_kind=link.error_kind,
        error_code=link.error_code,
        error_message=link.error_message,
        error_request_id=link.error_request_id,
        error_at=link.error_at,
        payment=link.payment,
        payment_since=link.payment_since,
        payment_code=link.payment_code if link.payment is not None else None,
    )


def _standing(link: BillingLink, now: datetime) -> Standing:
    if link.state != "open":
        return "held" if link.state == "held" else "parked"
    if link.applied_version >= link.wanted_version and link.intent is None:
        return "in_sync"
    if link.lease_until is not None and link.lease_until > now:
        return "working"
    if link.error_kind == WAITING_FOR_PAYER:
        return "waiting"
    return "queued" if link.error_kind is None else "retrying"


def _next_at(link: BillingLink, standing: Standing, now: datetime) -> datetime | None:
    """A queued link is worked on when its message arrives; ``sweep_at`` is when the sweep sends it once more."""
    if standing in {"waiting", "retrying"}:
        return link.next_attempt_at or link.sweep_at
    if standing == "working":
        return link.lease_until
    if standing == "queued":
        return max(link.sweep_at, now)
    return None


def _named(session: Session, *conditions: ColumnElement[bool]) -> list[Named]:
    rows = session.execute(
        select(Organization.id, Organization.name).where(*conditions).order_by(Organization.id).limit(CLOSE_AT_MOST)
    )
    return [Named(id=row[0], name=row[1]) for row in rows]


def _close(session: Session, word: str) -> list[Named]:
    """Names that contain the word; else names that are spelt much like it, among the first few thousand."""
    alive = Organization.status != "deleted"
    if word.strip() and (
        containing := _named(session, alive, Organization.name_key.contains(name_key(word), autoescape=True))
    ):
        return containing
    rows = session.execute(
        select(Organization.id, Organization.name, Organization.name_key).where(alive).limit(NAMES_COMPARED)
    ).all()
    by_key = {row[2]: Named(id=row[0], name=row[1]) for row in rows}
    by_id = {row[0]: Named(id=row[0], name=row[1]) for row in rows}
    known = by_id if word.startswith("org_") else by_key
    return [known[key] for key in difflib.get_close_matches(name_key(word), list(known), n=CLOSE_AT_MOST)]
