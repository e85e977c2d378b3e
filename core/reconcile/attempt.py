"""A turn at a link: one worker's, fenced by its token, for as long as its lease; implements ``gateways.Claim``.

The lease is a row and always ends. What a turn sets out to do is written before it is sent, and what was made before
the next call. Whoever comes back after its lease was taken changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    String,
    bindparam,
    case,
    exists,
    false,
    func,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased
from sqlalchemy.sql.dml import ReturningUpdate

from core.common.clock import Clock
from core.common.json_types import Json
from core.compare.desired_state import refuse_second_payer
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.db.models.events import Event
from core.db.models.organizations import Organization
from core.db.models.providers import BillerStanding
from core.flow_control import circuit_breaker
from core.flow_control.request_gate import Gate
from core.organizations import commands
from core.ports.errors import LeaseLostError, RejectedError
from core.ports.provider import KEY_IS_TRUSTED_FOR, Customer, Intent, Subscription
from core.ports.spec import Account, Known, Provider

LEASE = timedelta(seconds=45)
# The longest one call to a biller can take, blips bridged: 10 s deadline, 3 tries within 3 s, and some air.
CALL = timedelta(seconds=20)

UNSURE = ""
"""``applied_customer`` or ``applied_plan`` of ours that was told something whose outcome is not known."""


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
            payer_id=self.link.payer_id,
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
        self._write({"intent": stored(intent), "generation": generation}, charges=charges)
        self.generation, self.intent = generation, intent
        return intent

    def resend(self) -> Intent:
        if self.intent is None:
            message = "there is no stored intent to send again"
            raise RuntimeError(message)
        again = replace(self.intent, last_sent_at=self.clock())
        self._write({"intent": stored(again)})
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

    def forget_plan(self) -> None:
        """The subscription is read before anything is believed of it again."""
        self._write({"applied_plan": None})
        self.link.applied_plan = None

    def disbelieve(self) -> None:
        """A look found something else there than was made: nothing counts as applied any more.

        What the plan was is kept: another change here would make it again there on nobody's word.
        """
        self._write(
            {
                "applied_version": min(self.link.applied_version, self.organization.billing_version - 1),
                "applied_customer": UNSURE if self.link.applied_customer is not None else None,
            }
        )

    def _write(self, values: dict[str, Any], *, charges: bool = False) -> None:
        """``charges``: after this, this biller may charge; refused, under the organization's lock, if the other may."""
        until = self.clock() + LEASE
        with ids_are_free(self), self.database.write() as session:
            if charges:
                commands.lock(session, self.organization.id)
                refuse_second_payer(session.get_one(BillingLink, (self.organization.id, self.other.provider)))
            fenced(session, self, {**values, "lease_until": until})
        self.lease_until = until


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What a turn made there, as the biller answered; the parts that are None were left alone."""

    customer: Customer | None = None
    customer_digest: str | None = None
    payer_id: str | None = None
    subscription: Subscription | None = None
    ended: bool = False


class Fenced(NamedTuple):
    """The link after a write of its own turn, its hints, and how often its biller failed in a row by now.

    ``completes``: with this write both billers hold the turn's version, and that was said of no such version yet.
    """

    state: str
    next_attempt_at: datetime | None
    hinted: int
    failures: int
    completes: bool


@contextmanager
def ids_are_free(turn: Turn) -> Iterator[None]:
    """A customer id that another organization's link holds is a person's to sort out, not a crash for ever."""
    try:
        yield
    except IntegrityError as error:
        message = (
            f"the customer of {turn.organization.id} there is the one that another organization's link names; "
            "give that one its own with `billing-sync ids`, then retry"
        )
        raise RejectedError(turn.provider, message, "billing_id_twice") from error


def fenced(session: Session, turn: Turn, values: dict[str, Any], *, ends: bool = False) -> Fenced:
    """Write to the link if it is still this turn's and nobody changed what the turn believes of it.

    ``ends``: it is the write that ends a turn in which all was done, under the organization's lock.
    """
    computed = {name: value for name, value in values.items() if isinstance(value, ColumnElement)}
    plain = {name: value for name, value in values.items() if name not in computed}
    statement = _written(frozenset(plain), ends=ends)
    session.flush()
    held = (
        session.connection()
        .execute(
            statement.values(computed) if computed else statement,
            {
                "this_org": turn.organization.id,
                "this_biller": turn.provider,
                "other_biller": turn.other.provider,
                "this_token": turn.token,
                "this_generation": turn.generation,
                "this_version": turn.organization.billing_version,
                **{f"new_{name}": value for name, value in plain.items()},
            },
        )
        .one_or_none()
    )
    if held is None:
        message = f"{turn.organization.id} at {turn.provider} was taken over by another worker or a person"
        raise LeaseLostError(message)
    return Fenced(*held)


@cache
def _written(names: frozenset[str], *, ends: bool) -> ReturningUpdate[str, datetime | None, int, int, bool]:
    """The statement that writes these columns: to build one costs more than to send it, and there are few."""
    org_id, biller = bindparam("this_org", type_=String()), bindparam("this_biller", type_=String())
    columns = BillingLink.__table__.c
    return (
        update(BillingLink)
        .where(
            BillingLink.org_id == org_id,
            BillingLink.provider == biller,
            BillingLink.lease_token == bindparam("this_token"),
            BillingLink.generation == bindparam("this_generation"),
        )
        .values({name: bindparam(f"new_{name}", type_=columns[name].type) for name in sorted(names)})
        .returning(
            BillingLink.state,
            BillingLink.next_attempt_at,
            BillingLink.hinted,
            circuit_breaker.failures(biller),
            _completes(org_id) if ends else false(),
        )
        .execution_options(synchronize_session=False)
    )


def _completes(org_id: ColumnElement[str]) -> ColumnElement[bool]:
    """What was said last is read from the events themselves: a round that repeats an old version says nothing new."""
    version = bindparam("this_version", type_=BigInteger())
    other = aliased(BillingLink)
    other_holds = exists().where(
        other.org_id == org_id,
        other.provider == bindparam("other_biller"),
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


def made_values(turn: Turn, made: Made) -> dict[str, Any]:
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
    payer = {"payer_id": payer_of(made)} if turn.provider == "lago" else {}
    settled = {"intent": None} if turn.intent_is("create_customer") else {}
    return {
        "customer_id": made.customer.id,
        "account_id": turn.account.id if turn.account else turn.link.account_id,
        "livemode": made.customer.livemode,
        "applied_customer": made.customer_digest,
        **payer,
        **settled,
    }


def payer_of(made: Made) -> str | None:
    """Whom Lago charges: whom it was told, or whom it shows where it was told nobody."""
    return made.payer_id or (made.customer.payer_id if made.customer else None)


def stored(intent: Intent) -> dict[str, Any]:
    return {
        "operation": intent.operation,
        "generation": intent.generation,
        "key": intent.key,
        "body": dict(intent.body),
        "first_sent_at": intent.first_sent_at.isoformat(),
        "last_sent_at": intent.last_sent_at.isoformat(),
    }


def loaded(stored: dict[str, Any] | None) -> Intent | None:
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
