"""One sync attempt at a billing link: leased, fenced, with write-ahead intents.

The lease is stored in the link's row and always ends. An intent is written before its request is sent, and a result
before the next request. A worker whose lease was taken over writes no result; ``outcomes`` says what it still
writes.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final, NamedTuple

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
from core.compare import charging_guard
from core.compare.desired_state import external_ids, sold_price
from core.db import leases
from core.db.database import Database
from core.db.models.billing_links import NO_MOVE, NO_TARGET, BillingLink
from core.db.models.events import Event
from core.db.models.organizations import Organization
from core.db.models.providers import ProviderStatus
from core.flow_control import circuit_breaker, payment_brake
from core.flow_control.payment_brake import PaymentLimit, RequestedChange
from core.flow_control.request_gate import RequestGate
from core.organizations import commands, link_states
from core.organizations.link_states import LinkEvent
from core.organizations.links import SWEEP_GRACE
from core.ports import arrangement
from core.ports.errors import LeaseLostError, RejectedError
from core.ports.observed import ObservedCredit
from core.ports.planned import PaymentChange, PlannedStep
from core.ports.provider import IDEMPOTENCY_KEY_SAFE_FOR, Customer, Intent, Subscription
from core.ports.spec import Account, LastKnown, Provider
from core.reconcile import payment_goals
from core.reconcile.attempt_history import AttemptHistory

LINK_LEASE = timedelta(seconds=45)
# The longest that one call to a provider can take: 10 s deadline, 3 inline tries within 3 s, and a margin.
MAX_CALL_DURATION = timedelta(seconds=20)


# An attempt sends a handful of requests. A check of a large account sends more, and the last ones matter.
MAX_REPORTED_REQUESTS = 20
_PROVIDER_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_.:-]{1,100}")

# An attempt reads these columns again after it wrote them. What else it wrote is stale in ``link``.
_KNOWN_STATE_COLUMNS: Final = frozenset(
    {
        "customer_id",
        "customer_state",
        "customer_fingerprint",
        "plan_state",
        "applied_plan",
        "subscription_requested",
        "ownership",
        "maybe_older",
        "charging_move",
        "charging_move_at",
    }
)


@dataclass(slots=True)
class SyncAttempt:
    """One worker's attempt at one link; implements ``AttemptContext``. ``request_count``: the requests allowed so far.

    ``is_breaker_probe``: the provider's circuit breaker is open, and only this attempt tries whether it responds again.
    """

    database: Database
    clock: Clock
    provider: Provider
    organization: Organization
    link: BillingLink
    other_link: BillingLink
    provider_status: ProviderStatus
    is_breaker_probe: bool
    lease_token: str
    lease_until: datetime
    generation: int
    intent: Intent | None
    event_id: str | None = None
    """The organization's newest event that a provider must see, when the attempt began; ``None``: it is long ago."""
    request_id: str | None = None
    """The API request that caused that event."""
    request_count: int = field(default=0)
    has_sent_writes: bool = False
    provider_request_ids: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_REPORTED_REQUESTS))
    """The provider's ids of the last requests that it answered."""
    account: Account | None = None
    """The account of the API key that this attempt uses; it is stored with the ids."""
    may_write: bool = False
    """Whether the organization is managed. The reconciler decides it before the first request."""
    payment_limit: PaymentLimit | None = None
    """Of changes of what is paid, for all organizations; ``None``: none."""
    plan_goal: str = ""
    """``payment_goals.plan_goal`` of the organization."""
    pays_nothing: bool = False
    """The plan that was sold at this provider costs nothing."""
    gate: RequestGate | None = None
    """What every request passes; ``None``: requests are not limited."""
    history: AttemptHistory = field(init=False)
    prepared: dict[str, Any] = field(default_factory=dict)
    """Values of the link that the next write stores, or the outcome."""
    other_is_read_again: bool = False
    """This attempt found out whose the customer is, so the other link must be read again."""
    stored_with_request: dict[str, Any] = field(default_factory=dict)
    """Values that are stored only if a request that writes is sent."""

    def __post_init__(self) -> None:
        self.history = AttemptHistory(
            org_id=self.organization.id, provider=self.provider, version=self.organization.version
        )

    @property
    def database_id(self) -> str:
        return self.provider_status.database_id

    @property
    def links(self) -> Mapping[Provider, BillingLink]:
        """Both links of the organization, as this attempt read them."""
        other_provider: Provider = "lago" if self.provider == "stripe" else "stripe"
        return {self.provider: self.link, other_provider: self.other_link}

    @property
    def is_check_requested(self) -> bool:
        return self.link.checks_done < self.link.checks_requested

    @property
    def is_check_only(self) -> bool:
        in_sync = self.link.applied_version == self.organization.version and self.link.intent is None
        return in_sync and self.is_check_requested

    @property
    def last_known(self) -> LastKnown:
        return LastKnown(
            customer_id=self.link.customer_id,
            confirmed=self.link.customer_state in {"unknown", "applied"},
            applied=self.link.customer_state == "applied",
            subscription_id=self.link.subscription_id,
            maybe_lost_in_restore=self._maybe_lost_in_restore(),
            linked_at=self._linked_at,
            maybe_older=self.link.customer_id is None and self.link.maybe_older,
            subscription_requested=self.link.subscription_requested,
            ending_started=self.link.plan_state == "ending",
            plan_code=self.link.applied_plan,
            next_plan_code=self.link.applied_next_plan,
            replaced_next_plan_codes=frozenset(self.link.replaced_next_plans or ()),
            sold_price=sold_price(self.link),
            external_ids=external_ids(self.link),
            is_adopted=self.link.ownership == "adopted",
            payer_id=self.link.payer_id,
            payer_confirmed=self.link.payer_confirmed and self.link.customer_state in {"unknown", "applied"},
        )

    def _maybe_lost_in_restore(self) -> bool:
        """A link is reconciled soon after it is created. A link that never was may come from a restored backup."""
        return self.link.customer_id is None and self.clock() - self._linked_at > IDEMPOTENCY_KEY_SAFE_FOR

    @property
    def _linked_at(self) -> datetime:
        return self.link.created_at or self.organization.created_at

    def has_intent(self, operation: str) -> bool:
        return self.intent is not None and self.intent.operation == operation

    def before_change(
        self,
        describe: Callable[[], Iterable[PlannedStep]],  # noqa: ARG002 - nobody waits for it
        payment: PaymentChange | None = None,
    ) -> None:
        if payment is not None:
            self._take_place(payment)

    def _take_place(self, payment: PaymentChange) -> None:
        """At the payment brake, while this attempt has its lease. Raises ``PaymentBrakeError``, ``LeaseLostError``."""
        if self.payment_limit is None:
            return
        places = self.payment_limit.of(self.database)
        now = self.clock()
        with self.database.write() as session:
            fenced_update(session, self, {"lease_until": now + LINK_LEASE})
            may_send = payment_brake.take_place(session, self._requested_change(payment), places, now)
        self.lease_until = now + LINK_LEASE
        if not may_send:
            raise payment_goals.on_hold_error(self.provider, self.organization.id, payment)

    def _requested_change(self, payment: PaymentChange) -> RequestedChange:
        is_payer = payment.kind == "payer"
        goal = payment_goals.payer_goal(payment.after) if is_payer else self.plan_goal
        return RequestedChange(org_id=self.organization.id, scope="payer" if is_payer else "plan", goal=goal)

    def acquire_permit_ahead(self, operation: str) -> None:
        if self.gate is not None:
            self.gate.acquire_permit_ahead(operation)

    def before_request(self, operation: str) -> None:
        if self.gate is not None:
            self.gate.before_request(operation)
        if operation.startswith("GET "):
            self.history.add_read()
            if self.lease_until - self.clock() < MAX_CALL_DURATION:
                self._write({})
            self._check_lease()
        else:
            self.history.add_request(operation, self.clock())
            try:
                self._write(self.stored_with_request)
                self.stored_with_request = {}
                self._check_lease()
            except LeaseLostError:
                self.history.drop_request()
                raise
            self.has_sent_writes = True
        self.request_count += 1

    def _check_lease(self) -> None:
        """Raises ``LeaseLostError`` if it does not outlast a call that begins now."""
        if self.lease_until - self.clock() < MAX_CALL_DURATION:
            # To store it took so long that another worker may have the lease before the response comes.
            message = f"the lease of {self.organization.id} at {self.provider} ends too soon"
            raise LeaseLostError(message)

    def after_response(self, request_id: str | None) -> None:
        shown = loggable_request_id(request_id)
        self.history.add_response(shown)
        if shown is not None:
            self.provider_request_ids.append(shown)

    def record_intent(self, operation: str, body: Mapping[str, Json]) -> Intent:
        now = self.clock()
        generation = self.generation + 1
        intent = Intent(
            operation=operation,
            generation=generation,
            idempotency_key=f"billing-sync:{operation}:{self.organization.id}:{generation}",
            body=body,
            first_sent_at=now,
            last_sent_at=now,
        )
        may_charge = operation == "create_subscription"
        self._write({"intent": stored(intent), "generation": generation}, may_charge=may_charge)
        self.generation, self.intent = generation, intent
        return intent

    def resend_intent(self) -> Intent:
        if self.intent is None:
            message = "there is no stored intent to send again"
            raise RuntimeError(message)
        resent = replace(self.intent, last_sent_at=self.clock())
        self._write({"intent": stored(resent)})
        self.intent = resent
        return resent

    def record_no_older_customer(self) -> None:
        self.stored_with_request = {"maybe_older": False}

    def record_older_customer(self, customer_id: str) -> None:
        """The provider has a customer that we did not make, so the organization is observed from now on."""
        values = {**self._customer_values_after("older_customer_found"), "customer_id": customer_id}
        self._write({**values, "ownership": "theirs"}, observes_anew=True)

    def record_ours(self) -> None:
        """The customer, whose id came from outside, carries our complete marks, so we made it."""
        self._write({"ownership": "ours"}, observes_anew=True)

    def record_subscription_request(self) -> None:
        if not self.link.subscription_requested:
            self._prepare({"subscription_requested": True})

    def prepare_customer_write(self, payer_id: str | None, *, sends_name: bool = True) -> None:
        """Call before the customer is written: after a crash or a lost response, its state is not known.

        Once our name is sent, an adopted customer keeps its own one no more, also if ours changes back.

        A payer that is about to be sent to Lago counts as charged from now on, so that Stripe cannot start to charge.
        """
        values = self._customer_values_after("customer_write_started")
        if sends_name and self.link.adopted_fingerprint is not None:
            values["adopted_fingerprint"] = None
        if payer_id is not None and payer_id != self.link.payer_id:
            if self.link.payer_id is not None:  # before the new one is stored, or a repeated attempt would not know
                self._take_place(PaymentChange(kind="payer", before=self.link.payer_id, after=payer_id))
            self._write({**values, "payer_id": payer_id, "payer_confirmed": False}, may_charge=True)
        else:
            self._prepare(values)

    def prepare_subscription_write(self, next_plan_code: str | None) -> None:
        """Call before the subscription is written, for the same reason. ``next_plan_code`` may be scheduled then.

        What was scheduled before stays known: the write may not arrive.
        """
        values = self._plan_values_after("subscription_write_started")
        before = self.link.applied_next_plan
        if next_plan_code is not None and next_plan_code != before:
            values["applied_next_plan"] = next_plan_code
            if before is not None:
                values["replaced_next_plans"] = sorted({*(self.link.replaced_next_plans or ()), before})
        self._prepare(values)

    def prepare_payer_removal(self) -> None:
        """Call before the payer is taken out of Lago: without an answer nobody knows whether Lago still has it."""
        self._prepare({"payer_confirmed": False, **self._customer_values_after("customer_write_started")})

    def prepare_subscription_end(self) -> None:
        """Call before the subscription is ended. Raises ``PaymentBrakeError``.

        After a crash or a lost response, a subscription that is found ended was then ended by us. So this is stored
        at once: the subscription may be found ended before anything is sent.
        """
        # What was begun is finished. What a create without an answer left is not paid for yet.
        is_paid = self.link.subscription_id is not None and not self.pays_nothing
        if is_paid and self.link.plan_state != "ending":
            self._take_place(PaymentChange(kind="end"))
        self._write(self._plan_values_after("subscription_end_started"))

    def save_end_before_move(self, result: ApplyResult) -> None:
        """Store that our subscription has ended, so that the payer can be taken out next, also after a crash."""
        values = {**applied_values(self, result), "charging_move": "ended", "charging_move_at": self.clock()}
        self._write(values)

    def save_customer(self, result: ApplyResult) -> None:
        """Store the customer and the payer before the next call, so that a crash in that call does not lose them."""
        values = _customer_values(self, result)
        if values:
            self._write(values)
            self.intent = None if self.has_intent("create_customer") else self.intent

    def invalidate_plan(self) -> None:
        """Invalidate the last-known plan: the subscription is read before the next write to it."""
        self._write(self._plan_values_after("scheduled_plan_found"))

    def _customer_values_after(self, event: LinkEvent) -> dict[str, Any]:
        """Empty if the event leaves the state as it is."""
        after = link_states.customer_after(self.provider, event, self.link.customer_state)
        return {} if after == self.link.customer_state else {"customer_state": after, "customer_fingerprint": None}

    def _plan_values_after(self, event: LinkEvent) -> dict[str, Any]:
        after = link_states.plan_after(self.provider, event, self.link.plan_state)
        return {} if after == self.link.plan_state else {"plan_state": after, "applied_plan": None}

    def _prepare(self, values: dict[str, Any]) -> None:
        """Store these values with the next write to the link: before the next request that writes, or the outcome."""
        self.prepared |= values
        self._remember(values)

    def _write(self, values: dict[str, Any], *, may_charge: bool = False, observes_anew: bool = False) -> None:
        """``may_charge``: from now on this provider may charge.

        This is refused if the other provider may charge, or if its customer is not ours; the organization is locked
        for that. ``observes_anew``: whether the organization is observed may have changed, so an attempt at the other
        link loses its lease, and that link is read again.
        """
        values = {**self.prepared, **values}
        lease_until = self.clock() + LINK_LEASE
        with unique_customer_ids(self), self.database.write() as session:
            if may_charge:
                commands.lock(session, self.organization.id)
                other_link = session.get_one(BillingLink, (self.organization.id, self.other_link.provider))
                self._refuse_observed(other_link)
                charging_guard.refuse_double_charging(other_link)
            if observes_anew:
                commands.lock(session, self.organization.id)
                _read_again(session, self.other_link, self.clock())
            fenced_update(session, self, {**values, "lease_until": lease_until})
            stored = self.history.store(session)
        self.history.confirm(stored, values)
        self.lease_until = lease_until
        self.other_is_read_again = self.other_is_read_again or observes_anew
        self.prepared = {}
        self._remember(values)

    def _refuse_observed(self, other_link: BillingLink) -> None:
        """Raises ``LeaseLostError`` if the organization is observed now because of its other link."""
        if other_link.ownership == "theirs":
            message = f"the customer of {self.organization.id} at {other_link.provider} is not ours any more"
            raise LeaseLostError(message)

    def _remember(self, values: Mapping[str, Any]) -> None:
        for name in _KNOWN_STATE_COLUMNS & values.keys():
            setattr(self.link, name, values[name])


def _read_again(session: Session, link: BillingLink, now: datetime) -> None:
    """Whoever waits until Lago was read waits no more."""
    waits_for_lago = BillingLink.not_before_reason == "lago_unread"
    session.execute(
        update(BillingLink)
        .where(BillingLink.org_id == link.org_id, BillingLink.provider == link.provider)
        .values(
            generation=BillingLink.generation + 1,
            checks_requested=BillingLink.checks_requested + 1,
            state=link_states.values_after("check_requested")["state"],
            not_before=case((waits_for_lago, None), else_=BillingLink.not_before),
            not_before_reason=case((waits_for_lago, None), else_=BillingLink.not_before_reason),
            next_sweep_at=case((waits_for_lago, now + SWEEP_GRACE), else_=BillingLink.next_sweep_at),
        )
        .execution_options(synchronize_session=False)
    )


def loggable_request_id(request_id: str | None) -> str | None:
    """The id, if it is one: it comes from a header that anything between us and the provider may have set."""
    return request_id if request_id is not None and _PROVIDER_REQUEST_ID.fullmatch(request_id) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyResult:
    """What an attempt did at the provider, by the provider's responses. A part that is None was left alone."""

    customer: Customer | None = None
    customer_fingerprint: str | None = None
    payer_id: str | None = None
    subscription: Subscription | None = None
    ended: bool = False
    credit: ObservedCredit | None = None
    """On the customer's balance, by the last response that showed it."""
    marks_written: bool = False
    marks_removed: bool = False
    payer_removed: bool = False


class FencedRow(NamedTuple):
    """The link after a write of its own attempt, its requested checks, and the provider's consecutive failures.

    ``completes_version``: with this write both providers have the attempt's version, and no ``organization.synced`` was
    recorded for this or a later version yet.
    """

    state: str
    not_before: datetime | None
    checks_requested: int
    consecutive_failures: int
    completes_version: bool


@contextmanager
def unique_customer_ids(attempt: SyncAttempt) -> Iterator[None]:
    """Turn a duplicate customer id (unique violation) into a parked link instead of an endless crash loop."""
    try:
        yield
    except IntegrityError as error:
        message = (
            f"the customer id of {attempt.organization.id} at {attempt.provider} is already used by another "
            "organization's link: give that organization its own customer id with `billing-sync set-customer-id`, and "
            f"adopt it with `billing-sync adopt`, then run `billing-sync retry {attempt.organization.id}`"
        )
        raise RejectedError(attempt.provider, message, "customer_id_in_use") from error


def fenced_update(
    session: Session, attempt: SyncAttempt, values: dict[str, Any], *, is_completion: bool = False
) -> FencedRow:
    """Write to the link only while this attempt has its lease and its generation. Raises ``LeaseLostError``.

    What the attempt prepared is written, too, where ``values`` says nothing else, unless nothing was read or sent: then
    what is stored is as true as before. ``is_completion``: this write completes the attempt; the caller has locked the
    organization.
    """
    values = {**attempt.prepared, **values} if attempt.request_count else values
    expressions = {name: value for name, value in values.items() if isinstance(value, ColumnElement)}
    plain_values = {name: value for name, value in values.items() if name not in expressions}
    statement = _fenced_statement(frozenset(plain_values), is_completion=is_completion)
    session.flush()
    row = (
        session.connection()
        .execute(
            statement.values(expressions) if expressions else statement,
            {
                "this_org": attempt.organization.id,
                "this_provider": attempt.provider,
                "other_provider": attempt.other_link.provider,
                "this_token": attempt.lease_token,
                "this_generation": attempt.generation,
                "this_version": attempt.organization.version,
                **{f"new_{name}": value for name, value in plain_values.items()},
            },
        )
        .one_or_none()
    )
    if row is None:
        link = f"{attempt.organization.id} at {attempt.provider}"
        message = f"the lease of {link} was taken over by another worker or an operator"
        raise LeaseLostError(message)
    return FencedRow(*row)


@cache
def _fenced_statement(
    columns_to_write: frozenset[str], *, is_completion: bool
) -> ReturningUpdate[str, datetime | None, int, int, bool]:
    """The statement that writes these columns. It is cached, because building one costs more than sending it."""
    org_id, provider = bindparam("this_org", type_=String()), bindparam("this_provider", type_=String())
    columns = BillingLink.__table__.c
    return (
        update(BillingLink)
        .where(
            BillingLink.org_id == org_id,
            BillingLink.provider == provider,
            leases.is_mine(BillingLink, bindparam("this_token")),
            BillingLink.generation == bindparam("this_generation"),
        )
        .values({name: bindparam(f"new_{name}", type_=columns[name].type) for name in sorted(columns_to_write)})
        .returning(
            BillingLink.state,
            BillingLink.not_before,
            BillingLink.checks_requested,
            circuit_breaker.consecutive_failures(provider),
            _both_reach_version(org_id) if is_completion else false(),
        )
        .execution_options(synchronize_session=False)
    )


def _both_reach_version(org_id: ColumnElement[str]) -> ColumnElement[bool]:
    """The last reported version is read from the events, so an attempt that repeats an old version reports nothing."""
    version = bindparam("this_version", type_=BigInteger())
    other_link = aliased(BillingLink)
    other_is_synced = exists().where(
        other_link.org_id == org_id,
        other_link.provider == bindparam("other_provider"),
        other_link.applied_version == version,
        other_link.intent.is_(None),
    )
    last_reported = (
        select(Event.data["version"].as_integer())
        .where(Event.org_id == org_id, Event.type == "organization.synced")
        .order_by(Event.seq.desc())
        .limit(1)
        .scalar_subquery()
    )
    return case((other_is_synced, func.coalesce(last_reported, 0) < version), else_=false())


def applied_values(attempt: SyncAttempt, result: ApplyResult) -> dict[str, Any]:
    values = _customer_values(attempt, result)
    if result.marks_written:
        values["marks"] = "ours"
    if result.payer_removed:
        values |= {"payer_id": None, "payer_confirmed": False, **NO_MOVE}
    if result.subscription is not None:
        values |= {
            "subscription_id": result.subscription.id,
            "plan_state": link_states.plan_after(attempt.provider, "subscription_written", attempt.link.plan_state),
            "applied_plan": result.subscription.plan_code,
            "sold_plan": result.subscription.plan_code,
            "sold_price_id": result.subscription.price_id,
            # Only this code: an operator may have named another one during the attempt.
            **_targets_after(result.subscription.plan_code),
            "applied_next_plan": result.subscription.next_plan_code,
            "replaced_next_plans": None,
            "arrangement": arrangement.to_json(result.subscription.arrangement),
        }
    if result.ended:
        values |= {
            "subscription_id": None,
            "subscription_requested": False,
            "plan_state": link_states.plan_after(attempt.provider, "subscription_ended", attempt.link.plan_state),
            "applied_plan": None,
            "sold_plan": None,
            "sold_price_id": None,
            **NO_TARGET,
            "applied_next_plan": None,
            "replaced_next_plans": None,
            "arrangement": None,
        }
    return values


def _targets_after(sold_code: str) -> dict[str, Any]:
    is_reached = BillingLink.target_plan == sold_code
    return {name: case((is_reached, value), else_=getattr(BillingLink, name)) for name, value in NO_TARGET.items()}


def _customer_values(attempt: SyncAttempt, result: ApplyResult) -> dict[str, Any]:
    if result.customer is None or result.customer_fingerprint is None:
        return {}
    payer = _payer_values(result) if attempt.provider == "lago" else {}
    cleared_intent = {"intent": None} if attempt.has_intent("create_customer") else {}
    return {
        "customer_id": result.customer.id,
        "account_id": attempt.account.id if attempt.account else attempt.link.account_id,
        "livemode": result.customer.livemode,
        "customer_state": link_states.customer_after(attempt.provider, "customer_written", attempt.link.customer_state),
        "customer_fingerprint": result.customer_fingerprint,
        **payer,
        **cleared_intent,
    }


def _payer_values(result: ApplyResult) -> dict[str, Any]:
    payer_id = payer_of(result)
    is_confirmed = payer_id is not None and result.customer is not None and result.customer.payer_id == payer_id
    return {"payer_id": payer_id, "payer_confirmed": is_confirmed}


def payer_of(result: ApplyResult) -> str | None:
    """The payer that Lago charges: the one that was sent, or else the one that Lago returned."""
    return result.payer_id or (result.customer.payer_id if result.customer else None)


def stored(intent: Intent) -> dict[str, Any]:
    return {
        "operation": intent.operation,
        "generation": intent.generation,
        "key": intent.idempotency_key,
        "body": dict(intent.body),
        "first_sent_at": intent.first_sent_at.isoformat(),
        "last_sent_at": intent.last_sent_at.isoformat(),
    }


def intent_from_json(stored: dict[str, Any] | None) -> Intent | None:
    if stored is None:
        return None
    return Intent(
        operation=stored["operation"],
        generation=stored["generation"],
        idempotency_key=stored["key"],
        body=stored["body"],
        first_sent_at=datetime.fromisoformat(stored["first_sent_at"]),
        last_sent_at=datetime.fromisoformat(stored["last_sent_at"]),
    )
