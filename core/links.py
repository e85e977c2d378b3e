"""A link's work: who may do it now, what was done, when to try again, and when to stop and wait for a person.

One turn at a time: the lease is a row, fenced by its token, and it always ends. Whoever comes back after its lease was
taken changes nothing and makes the next turn look at everything anew.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import uuid4

from sqlalchemy import Boolean, ColumnElement, case, exists, false, func, literal_column, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from core import billers, organizations, outbox
from core.clock import Clock
from core.database import Database
from core.errors import (
    LeaseLostError,
    MisconfiguredError,
    ObjectThrottledError,
    ProviderError,
    RejectedError,
    RetryableError,
    ThrottledError,
    UnavailableError,
)
from core.events import Change
from core.gate import Gate
from core.gateways import KEY_IS_TRUSTED_FOR, Account, Customer, Intent, Json, Known, Provider, Subscription
from core.models import LINK_HAS_WORK, BillerStanding, BillingLink, Event, Organization
from core.organizations import SWEEP_GRACE
from core.wishes import refuse_second_payer

LEASE = timedelta(seconds=45)
# The longest one call to a biller can take, blips bridged: 10 s deadline, 3 tries within 3 s, and some air.
CALL = timedelta(seconds=20)
# After a round with calls: what changes within it is taken along by one more, so a burst costs two rounds.
REST = timedelta(seconds=2)
# After one whose organization moved on while it ran: a burst is under way, and its end is waited for a little longer.
BURST_REST = timedelta(seconds=5)

# Seconds. A wait that is longer is the row's and the sweep's: on Redis a message with a countdown lies in a worker's
# memory until then, so what one holds is what it can handle within so many seconds. Long enough for a rest, a place in
# a quota's line and the first retries; short of a wait for a payer or for a person's new key.
LONGEST_RETRY = 15.0
LONGEST_WAIT = 900.0  # seconds
MISCONFIGURED_WAIT = 60.0  # seconds; every organization fails alike until a person has changed a setting
# Seconds; doubled by each. What one object may see Stripe counts by the minute, the hour and the day (stripe.md 3).
OBJECT_WAIT = 60.0

UNSURE = ""
"""``applied_customer`` or ``applied_plan`` of ours that was told something whose outcome is not known."""

Jitter = Callable[[float, float], float]


@dataclass(slots=True)
class Turn:
    """One worker's turn at one link; implements ``gateways.Claim``. ``calls`` counts the requests it allowed.

    ``probing``: the biller is stopped, and this turn alone tries whether it answers again.
    """

    database: Database
    clock: Clock
    provider: Provider
    organization: Organization
    link: BillingLink
    other: BillingLink
    standing: BillerStanding
    probing: bool
    token: str
    lease_until: datetime
    generation: int
    intent: Intent | None
    calls: int = field(default=0)
    account: Account | None = None
    """Whose key this turn sends with; its ids are kept with that."""
    gate: Gate | None = None
    """The way to the biller; ``None``: nothing limits it."""

    @property
    def links(self) -> Mapping[Provider, BillingLink]:
        """Both of the organization, as this turn knows them."""
        other: Provider = "lago" if self.provider == "stripe" else "stripe"
        return {self.provider: self.link, other: self.other}

    @property
    def is_hinted(self) -> bool:
        return self.link.looked < self.link.hinted

    @property
    def only_looks(self) -> bool:
        in_sync = self.link.applied_version == self.organization.billing_version and self.link.intent is None
        return in_sync and self.is_hinted

    @property
    def known(self) -> Known:
        return Known(
            customer_id=self.link.customer_id,
            verified=self.link.applied_customer is not None,
            subscription_id=self.link.subscription_id,
            may_be_forgotten=self._may_be_forgotten(),
            ended_by_us=self.link.applied_plan == UNSURE,
            plan_code=self.link.applied_plan or None,
            next_plan_code=self.link.applied_next_plan,
        )

    def _may_be_forgotten(self) -> bool:
        """A link is worked on within moments; one that was not for so long may be what a backup held of it."""
        made_at = self.link.made_at or self.organization.created_at
        return self.link.customer_id is None and self.clock() - made_at > KEY_IS_TRUSTED_FOR

    def intent_is(self, operation: str) -> bool:
        return self.intent is not None and self.intent.operation == operation

    def book(self, operation: str) -> None:
        if self.gate is not None:
            self.gate.book(operation)

    def hold(self, operation: str) -> None:
        if self.gate is not None:
            self.gate.hold(operation)
        if self.lease_until - self.clock() < CALL:
            self._write({})
        self.calls += 1

    def write_ahead(self, operation: str, body: Mapping[str, Json]) -> Intent:
        now = self.clock()
        generation = self.generation + 1
        intent = Intent(
            operation=operation,
            generation=generation,
            key=f"billing-sync:{operation}:{self.organization.id}:{generation}",
            body=body,
            first_sent_at=now,
            last_sent_at=now,
        )
        charges = operation == "create_subscription"
        self._write({"intent": _stored(intent), "generation": generation}, charges=charges)
        self.generation, self.intent = generation, intent
        return intent

    def resend(self) -> Intent:
        if self.intent is None:
            message = "there is no stored intent to send again"
            raise RuntimeError(message)
        again = replace(self.intent, last_sent_at=self.clock())
        self._write({"intent": _stored(again)})
        self.intent = again
        return again

    def doubt_customer(self, payer_id: str | None) -> None:
        """Before the customer is told anything: after a crash or a lost answer, what it was told last is not known.

        A payer that Lago is about to be told counts as charged from here on, so that Stripe cannot begin to charge.
        """
        values: dict[str, Any] = {}
        if self.link.applied_customer:
            values["applied_customer"] = UNSURE
        charges = payer_id is not None and payer_id != self.link.payer_id
        if charges:
            values["payer_id"] = payer_id
        if values:
            self._write(values, charges=charges)

    def doubt_plan(self, next_plan_code: str | None) -> None:
        """Before the subscription is told anything, for the same reason; ``next_plan_code`` may wait there then."""
        values: dict[str, Any] = {}
        if self.link.applied_plan:
            values["applied_plan"] = None
        if next_plan_code is not None and next_plan_code != self.link.applied_next_plan:
            values["applied_next_plan"] = next_plan_code
        if values:
            self._write(values)

    def leave_plan(self) -> None:
        """Before the subscription is ended: after a crash or a lost answer, one found ended there ended by us."""
        self._write({"applied_plan": UNSURE})

    def keep_customer(self, made: Made) -> None:
        """Store what was made before going on: a crash in the next call must find it, and whom Lago charges."""
        values = _customer_values(self, made)
        if values:
            self._write(values)
            self.intent = None if self.intent_is("create_customer") else self.intent
            self.link.customer_id, self.link.applied_customer = values["customer_id"], values["applied_customer"]

    def keep(self, made: Made) -> None:
        """Store all that was made before it is looked at: what is found then may end the turn."""
        values = _made_values(self, made)
        if not values:
            return
        self._write({**values, "intent": None})
        self.intent = None
        for name, value in values.items():
            setattr(self.link, name, value)

    def forget_plan(self) -> None:
        """The subscription is read before anything is believed of it again."""
        self._write({"applied_plan": None})
        self.link.applied_plan = None

    def _write(self, values: dict[str, Any], *, charges: bool = False) -> None:
        """``charges``: after this, this biller may charge; refused, under the organization's lock, if the other may."""
        until = self.clock() + LEASE
        with _ids_are_free(self), self.database.write() as session:
            if charges:
                organizations.lock(session, self.organization.id)
                refuse_second_payer(session.get_one(BillingLink, (self.organization.id, self.other.provider)))
            _fenced(session, self, {**values, "lease_until": until})
        self.lease_until = until


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What a turn made there, as the biller answered; the parts that are None were left alone."""

    customer: Customer | None = None
    customer_digest: str | None = None
    payer_id: str | None = None
    subscription: Subscription | None = None
    ended: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Consequences:
    """What the turn means for the organization and for the other biller. ``payer_id``: whom Lago is to charge.

    The first two apply only while the organization's plans are those that the turn was about.
    """

    downgrade_comes_at: datetime | None = None
    tier_in_effect: str | None = None
    payer_id: str | None = None
    owes: bool | None = None
    """Whether a payment failed there and is still open; ``None``: nobody looked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """``behind``: the organization moved on meanwhile, or a hint came, so this biller needs another round, after
    ``rest`` seconds.

    ``wakes_other``: what was learned or made here concerns the other biller, whose link is behind now.
    """

    behind: bool
    rest: float
    wakes_other: bool = False


def claim(database: Database, clock: Clock, org_id: str, provider: Provider) -> Turn | float | None:
    """A turn; or the seconds until one may be had; or ``None``: nothing to do, parked, or somebody else's turn.

    Somebody else's turn looks at the version again before it ends, so nothing is missed. ``None`` as well while the
    biller is stopped: the row waits, and the sweep hands it over when the biller answers again.
    """
    try:
        with database.write() as session:
            return _claimed(session, database, clock, org_id, provider)
    except _ProbeTakenError:
        return None


class _ProbeTakenError(Exception):
    """Another turn tries the stopped biller; rolls this claim back."""


def _claimed(
    session: Session, database: Database, clock: Clock, org_id: str, provider: Provider
) -> Turn | float | None:
    now = clock()
    token = str(uuid4())
    taken = session.execute(
        update(BillingLink)
        .where(*_is_due(org_id, provider, now), billers.lets_in(provider, now))
        .values(
            lease_token=token,
            lease_until=now + LEASE,
            attempts=BillingLink.attempts + 1,
            # A turn that dies without a word is found by the sweep when its lease is over.
            sweep_at=now + LEASE + SWEEP_GRACE,
        )
        .returning(BillingLink.org_id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if taken is None:
        return _wait(session, org_id, provider, now)
    rows = session.execute(
        select(BillingLink, BillerStanding)
        .join(BillerStanding, BillerStanding.provider == provider)
        .where(BillingLink.org_id == org_id)
    ).all()
    links, standing = {link.provider: link for link, _ in rows}, rows[0][1]
    probing = standing.stop_kind is not None
    if probing and not billers.take_probe(session, provider, now):
        raise _ProbeTakenError
    organization = session.get_one(Organization, org_id)
    link = links.pop(provider)
    (other,) = links.values()
    return Turn(
        database=database,
        clock=clock,
        provider=provider,
        organization=organization,
        link=link,
        other=other,
        standing=standing,
        probing=probing,
        token=token,
        lease_until=now + LEASE,
        generation=link.generation,
        intent=_loaded(link.intent),
    )


def finish(turn: Turn, made: Made, consequences: Consequences) -> Finished:
    """Write back what was made and what is applied; the lease ends. Raises ``LeaseLostError``, ``RejectedError``."""
    now = turn.clock()
    with _ids_are_free(turn), turn.database.write() as session:
        organization = organizations.lock(session, turn.organization.id)
        if organization is None:
            message = f"{turn.organization.id} is gone"
            raise LeaseLostError(message)
        moved_on = organization.billing_version > turn.organization.billing_version
        values = {
            **_made_values(turn, made),
            **_done_values(turn, now, behind=moved_on),
            **_payment_values(turn, consequences.owes, now),
        }
        link = _fenced(session, turn, values, _completes(turn))
        _learnt(session, turn, link, now)
        change = Change(session, now)
        # Also for one that moved on otherwise: the next round would not be told again, since nothing changes there.
        if consequences.tier_in_effect is not None and (
            not moved_on or _still_goes_down(organization, turn.organization)
        ):
            organizations.settle_plan(change, organization, consequences.tier_in_effect)
        elif (
            consequences.downgrade_comes_at is not None
            and organization.pending_plan_tier is not None
            and (not moved_on or _same_plans(organization, turn.organization))
        ):
            organization.plan_effective_at = consequences.downgrade_comes_at
        wakes_other = _concerns_the_other(session, turn, made, consequences)
        if wakes_other:
            _tell_the_other(change, organization, turn, in_sync=not moved_on)
        through = organization.billing_version
        if link.completes and through == turn.organization.billing_version:
            outbox.record(change, "organization.synced", organization.id, {"through": through}, hurry=False)
    rest = _rest(turn, behind=moved_on)
    behind = moved_on or link.hinted > turn.link.hinted
    return Finished(behind=behind, rest=rest.total_seconds() if rest else 0.0, wakes_other=wakes_other)


def postpone(turn: Turn, until: datetime, kind: str, message: str) -> float:
    """Nothing was sent and nothing is wrong: the link waits for something else until then, or for any change.

    Returns the seconds. What it waits for may have come during this very turn: then it does not wait.
    """
    now = turn.clock()
    with turn.database.write() as session:
        values: dict[str, Any] = {
            **_NO_LEASE,
            "attempts": case((BillingLink.attempts > 0, BillingLink.attempts - 1), else_=0),
            "next_attempt_at": case((_moved_on(turn), None), else_=until),
            "sweep_at": case((_moved_on(turn), now + SWEEP_GRACE), else_=until),
        }
        if turn.link.error_kind != kind:
            values |= {**_NO_ERROR, "error_kind": kind, "error_message": message, "error_at": now}
        link = _fenced(session, turn, values)
        _learnt(session, turn, link, now)
    return (until - now).total_seconds() if link.next_attempt_at is not None else 0.0


def stand_in_line(turn: Turn, seconds: float, *, rung: bool) -> float | None:
    """The biller's quota is used up until then. Like ``postpone``, and an error that the link met before stays.

    Returns the seconds after which it must be rung; ``None``: the sweep finds it (``rung`` False).
    """
    now = turn.clock()
    until = now + timedelta(seconds=seconds)
    with turn.database.write() as session:
        values: dict[str, Any] = {
            **_NO_LEASE,
            "attempts": case((BillingLink.attempts > 0, BillingLink.attempts - 1), else_=0),
            "next_attempt_at": case((_moved_on(turn), None), else_=until),
            "sweep_at": until + SWEEP_GRACE if rung else until,
        }
        link = _fenced(session, turn, values)
        _learnt(session, turn, link, now)
    if not rung:
        return None
    return seconds if link.next_attempt_at is not None else 0.0


def try_later(turn: Turn, error: RetryableError, jitter: Jitter = random.uniform) -> float:
    """Record the failure and when to try again; returns the seconds until then."""
    now = turn.clock()
    seconds = delay(error, turn.link.attempts, jitter)
    due = now + timedelta(seconds=seconds)
    sweep_at = due if seconds > LONGEST_RETRY else due + SWEEP_GRACE
    with turn.database.write() as session:
        values = {**_error_values(error, now), **_NO_LEASE, "next_attempt_at": due, "sweep_at": sweep_at}
        if isinstance(error, ObjectThrottledError):
            values["rest_until"] = due  # one more change of it is one more that would be refused
        link = _fenced(session, turn, values)
        if isinstance(error, UnavailableError | MisconfiguredError):
            again = turn.link.error_kind == "unavailable"
            billers.failed(session, error, now, again=again, probing=turn.probing)
        else:
            _learnt(session, turn, link, now)
    return seconds


def park(turn: Turn, error: ProviderError) -> float | None:
    """Repeating cannot help: the link waits for its data to change, or for a person.

    If its data changed during this very turn, nothing is parked: returns the seconds until it is tried with that.
    """
    now = turn.clock()
    with turn.database.write() as session:
        values = {
            **_error_values(error, now),
            **_NO_LEASE,
            "state": case((_moved_on(turn), "open"), else_="parked"),
            "rest_until": now + REST,
            "sweep_at": now + SWEEP_GRACE,
        }
        link = _fenced(session, turn, values)
        _learnt(session, turn, link, now)
    return REST.total_seconds() if link.state == "open" else None


def stop_biller(turn: Turn, message: str) -> None:
    """The key is another account's: nothing was sent, and no turn begins before a person has acted."""
    now = turn.clock()
    with turn.database.write() as session:
        attempts = case((BillingLink.attempts > 0, BillingLink.attempts - 1), else_=0)
        _fenced(session, turn, {**_NO_LEASE, "attempts": attempts, "sweep_at": now})
        billers.stop(session, turn.provider, message, now)


def let_go(turn: Turn) -> None:
    """This turn lost the link before it sent anything; if nobody has it by now, the next may begin."""
    with turn.database.write() as session:
        if turn.probing:
            billers.give_probe_back(session, turn.provider, turn.clock())
        session.execute(
            update(BillingLink)
            .where(
                BillingLink.org_id == turn.organization.id,
                BillingLink.provider == turn.provider,
                BillingLink.lease_token == turn.token,
            )
            .values(_NO_LEASE)
            .execution_options(synchronize_session=False)
        )


def disturb(turn: Turn) -> None:
    """This turn sent something and lost the link: whatever is believed applied there is made again."""
    with turn.database.write() as session:
        organization = organizations.lock(session, turn.organization.id)
        if organization is None:
            return
        ours = BillingLink.lease_token == turn.token
        session.execute(
            update(BillingLink)
            .where(BillingLink.org_id == organization.id, BillingLink.provider == turn.provider)
            .values(
                applied_customer=case((BillingLink.applied_customer.is_not(None), UNSURE), else_=None),
                applied_plan=case((BillingLink.applied_plan == UNSURE, UNSURE), else_=None),
                generation=BillingLink.generation + 1,
                lease_until=case((ours, None), else_=BillingLink.lease_until),
            )
            .execution_options(synchronize_session=False)
        )
        organizations.bump(Change(session, turn.clock()), organization)


def delay(error: RetryableError, attempts: int, jitter: Jitter = random.uniform) -> float:
    """Seconds to wait: the biller's wish if it named one, else full jitter over 2, 4, 8 … up to ``LONGEST_WAIT``."""
    ceiling = min(LONGEST_WAIT, 2.0 ** min(attempts, 16))
    wait = max(0.2, jitter(0.0, ceiling))
    match error:
        case ObjectThrottledError():
            doubled = OBJECT_WAIT * 2.0 ** min(max(attempts - 1, 0), 16)
            return min(LONGEST_WAIT, max(doubled, error.retry_after or 0.0))
        case ThrottledError(retry_after=float() | int() as wish):
            return min(LONGEST_WAIT, wish + jitter(0.0, 1.0))
        case MisconfiguredError():
            return max(MISCONFIGURED_WAIT, wait)
    return wait


class Fenced(NamedTuple):
    """The link after a write of its own turn, its hints, and how often its biller failed in a row by now.

    ``completes``: with this write both billers hold the turn's version, and that was said of no such version yet.
    """

    state: str
    next_attempt_at: datetime | None
    hinted: int
    failures: int
    completes: bool


_NOTHING_ENDS: ColumnElement[bool] = false()
_NO_LEASE: dict[str, Any] = {"lease_token": None, "lease_until": None}
_NO_ERROR: dict[str, Any] = {
    "error_kind": None,
    "error_code": None,
    "error_message": None,
    "error_request_id": None,
    "error_at": None,
}


@contextmanager
def _ids_are_free(turn: Turn) -> Iterator[None]:
    """A customer id that another organization's link holds is a person's to sort out, not a crash for ever."""
    try:
        yield
    except IntegrityError as error:
        message = (
            f"the customer of {turn.organization.id} there is the one that another organization's link names; "
            "give that one its own with update_org_billing_ids, then retry"
        )
        raise RejectedError(turn.provider, message, "billing_id_twice") from error


def _moved_on(turn: Turn) -> ColumnElement[bool]:
    return BillingLink.wanted_version > turn.organization.billing_version


def _still_goes_down(now: Organization, then: Organization) -> bool:
    """Whether a downgrade waits, be it another one by now: the one that came is not undone for that."""
    return now.pending_plan_tier is not None and now.plan_tier == then.plan_tier


def _same_plans(now: Organization, then: Organization) -> bool:
    """Whether the downgrade that the turn was about still waits, whatever else changed."""
    plans = (now.plan_tier, now.pending_plan_tier)
    return now.pending_plan_tier is not None and plans == (then.plan_tier, then.pending_plan_tier)


def _concerns_the_other(session: Session, turn: Turn, made: Made, consequences: Consequences) -> bool:
    """A payer that Lago has not been told, or a charger that gave way; seen in the rows as they are now."""
    if turn.organization.status == "deleted":
        return False
    if turn.provider == "lago":
        return turn.link.payer_id is not None and made.customer is not None and _payer_of(made) is None
    other = session.get_one(BillingLink, (turn.organization.id, turn.other.provider), populate_existing=True)
    new_payer = consequences.payer_id is not None and consequences.payer_id != other.payer_id
    return new_payer or made.ended


def _payer_of(made: Made) -> str | None:
    """Whom Lago charges: whom it was told, or whom it shows where it was told nobody."""
    return made.payer_id or (made.customer.payer_id if made.customer else None)


def _completes(turn: Turn) -> ColumnElement[bool]:
    """To be returned by the write that ends the turn, under the organization's lock.

    What was said last is read from the events themselves: a round that repeats an old version says nothing new.
    """
    org_id, version = turn.organization.id, turn.organization.billing_version
    other = aliased(BillingLink)
    other_holds = exists().where(
        other.org_id == org_id,
        other.provider == turn.other.provider,
        other.applied_version == version,
        other.intent.is_(None),
    )
    said = (
        select(Event.data["through"].as_integer())
        .where(Event.org_id == org_id, Event.type == "organization.synced")
        .order_by(Event.seq.desc())
        .limit(1)
        .scalar_subquery()
    )
    return case((other_holds, func.coalesce(said, 0) < version), else_=false())


def _fenced(
    session: Session, turn: Turn, values: dict[str, Any], completes: ColumnElement[bool] = _NOTHING_ENDS
) -> Fenced:
    """Write to the link if it is still this turn's and nobody changed what the turn believes of it."""
    held = session.execute(
        update(BillingLink)
        .where(
            BillingLink.org_id == turn.organization.id,
            BillingLink.provider == turn.provider,
            BillingLink.lease_token == turn.token,
            BillingLink.generation == turn.generation,
        )
        .values(values)
        .returning(
            BillingLink.state,
            BillingLink.next_attempt_at,
            BillingLink.hinted,
            billers.failures(turn.provider),
            completes,
        )
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if held is None:
        message = f"{turn.organization.id} at {turn.provider} was taken over by another worker or a person"
        raise LeaseLostError(message)
    return Fenced(*held)


def _learnt(session: Session, turn: Turn, link: Fenced, now: datetime) -> None:
    """What this turn shows of the biller itself. Nothing is written where all goes well."""
    if turn.calls and (turn.probing or link.failures):
        billers.answered(session, turn.provider, now, probing=turn.probing)
    elif turn.probing:
        billers.give_probe_back(session, turn.provider, now)


def _is_due(org_id: str, provider: Provider, now: datetime) -> tuple[ColumnElement[bool], ...]:
    return (
        *_has_work(org_id, provider, now),
        or_(BillingLink.next_attempt_at.is_(None), BillingLink.next_attempt_at <= now),
        or_(BillingLink.rest_until.is_(None), BillingLink.rest_until <= now),
    )


def _has_work(org_id: str, provider: Provider, now: datetime) -> tuple[ColumnElement[bool], ...]:
    """Only a link that is open, behind and free will have a turn by waiting."""
    return (
        BillingLink.org_id == org_id,
        BillingLink.provider == provider,
        BillingLink.state == "open",
        literal_column(f"({LINK_HAS_WORK})", Boolean),
        or_(BillingLink.lease_until.is_(None), BillingLink.lease_until < now),
    )


def _wait(session: Session, org_id: str, provider: Provider, now: datetime) -> float | None:
    """Why there was no turn: the link's own wait, or a biller that is stopped."""
    row = session.execute(
        select(BillingLink.next_attempt_at, BillingLink.rest_until, BillerStanding.stop_kind, BillerStanding.probe_at)
        .join(BillerStanding, BillerStanding.provider == provider)
        .where(*_has_work(org_id, provider, now))
    ).one_or_none()
    if row is None:
        return None
    if row.stop_kind is not None:
        _wait_for_probe(session, org_id, provider, row.probe_at, now)
        return None
    moments = [moment for moment in (row.next_attempt_at, row.rest_until) if moment is not None]
    return max(0.05, (max(moments) - now).total_seconds()) if moments else None


def _wait_for_probe(
    session: Session, org_id: str, provider: Provider, probe_at: datetime | None, now: datetime
) -> None:
    """What came while its biller is stopped is handed over once that may answer again, after all that is older."""
    if probe_at is not None:
        session.execute(
            update(BillingLink)
            .where(*_is_due(org_id, provider, now), BillingLink.sweep_at > probe_at)
            .values(sweep_at=probe_at)
            .execution_options(synchronize_session=False)
        )


def _rest(turn: Turn, *, behind: bool) -> timedelta | None:
    if not turn.calls:
        return None
    return BURST_REST if behind else REST


def _done_values(turn: Turn, now: datetime, *, behind: bool) -> dict[str, Any]:
    rest = _rest(turn, behind=behind)
    values: dict[str, Any] = {
        **_NO_LEASE,
        **_NO_ERROR,
        "applied_version": turn.organization.billing_version,
        "attempts": 0,
        "next_attempt_at": None,
        "rest_until": now + rest if rest else None,
        "intent": None,
        "looked": turn.link.hinted,
    }
    if behind:
        return values | {"sweep_at": now + SWEEP_GRACE}
    # It was in sync before it was looked at, too.
    return values if turn.only_looks else values | {"synced_at": now}


def _payment_values(turn: Turn, owes: bool | None, now: datetime) -> dict[str, Any]:  # noqa: FBT001 - three answers
    """What was told of a payer that is not taken stays: no biller can be asked for that."""
    failed = BillingLink.payment == "failed"
    if owes is None:
        return {}
    if owes:
        since = case((failed, BillingLink.payment_since), else_=now)
        return {"payment": "failed", "payment_since": since}
    # A reason that was told in mid-turn belongs to the next look.
    told = or_(BillingLink.hinted > turn.link.hinted, BillingLink.payment == "refused")
    return {
        "payment": case((failed, None), else_=BillingLink.payment),
        "payment_since": case((failed, None), else_=BillingLink.payment_since),
        "payment_code": case((told, BillingLink.payment_code), else_=None),
    }


def _made_values(turn: Turn, made: Made) -> dict[str, Any]:
    values = _customer_values(turn, made)
    if made.subscription is not None:
        values |= {
            "subscription_id": made.subscription.id,
            "applied_plan": made.subscription.plan_code,
            "applied_next_plan": made.subscription.next_plan_code,
        }
    if made.ended:
        values |= {"subscription_id": None, "applied_plan": None, "applied_next_plan": None}
    return values


def _customer_values(turn: Turn, made: Made) -> dict[str, Any]:
    if made.customer is None or made.customer_digest is None:
        return {}
    payer = {"payer_id": _payer_of(made)} if turn.provider == "lago" else {}
    settled = {"intent": None} if turn.intent_is("create_customer") else {}
    return {
        "customer_id": made.customer.id,
        "account_id": turn.account.id if turn.account else turn.link.account_id,
        "livemode": made.customer.livemode,
        "applied_customer": made.customer_digest,
        **payer,
        **settled,
    }


def _error_values(error: ProviderError, now: datetime) -> dict[str, Any]:
    # To a reader a throttle is one, whomever it is about: the code tells that.
    kind = ThrottledError if isinstance(error, ThrottledError) else type(error)
    return {
        "error_kind": kind.__name__.removesuffix("Error").lower(),
        "error_code": error.code,
        "error_message": error.message,
        "error_request_id": error.request_id,
        "error_at": now,
    }


def _tell_the_other(change: Change, organization: Organization, turn: Turn, *, in_sync: bool) -> None:
    """What happened here is a change that the other biller must see; this one has seen it."""
    organizations.bump(change, organization)
    if in_sync:
        change.session.execute(
            update(BillingLink)
            .where(BillingLink.org_id == organization.id, BillingLink.provider == turn.provider)
            .values(applied_version=organization.billing_version)
            .execution_options(synchronize_session=False)
        )


def _stored(intent: Intent) -> dict[str, Any]:
    return {
        "operation": intent.operation,
        "generation": intent.generation,
        "key": intent.key,
        "body": dict(intent.body),
        "first_sent_at": intent.first_sent_at.isoformat(),
        "last_sent_at": intent.last_sent_at.isoformat(),
    }


def _loaded(stored: dict[str, Any] | None) -> Intent | None:
    if stored is None:
        return None
    return Intent(
        operation=stored["operation"],
        generation=stored["generation"],
        key=stored["key"],
        body=stored["body"],
        first_sent_at=datetime.fromisoformat(stored["first_sent_at"]),
        last_sent_at=datetime.fromisoformat(stored["last_sent_at"]),
    )
