"""Inbox of provider webhooks: each is stored once, and then requests a remote check of the link that it is about.

A webhook says what to check, never what the state of a customer or subscription is: that is not stored, and its time
is not compared. So a webhook that is repeated, late, out of order or lost does no harm. Only the code of a failed
payment, and that a payer was rejected or accepted, come from it, because no provider can be asked for these: of them
the one that was received last counts. The API
that stores it needs no broker: the relay finds the row within moments, as it finds events, and has it processed in the
queue. The sweep processes what it missed.

An unexpected error at one link delays nobody else: its webhooks wait, each time longer, and those that have failed for
an hour are rejected, so that an operator sees them and can replay them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import structlog
from sqlalchemy import (
    Boolean,
    ColumnElement,
    and_,
    case,
    delete,
    func,
    literal_column,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from core.common.clock import Clock
from core.common.error_place import raised_at
from core.db.database import DATABASE_UNAVAILABLE_ERRORS, Database
from core.db.models.billing_links import LINK_HAS_WORK, BillingLink
from core.db.models.inbox import ProviderWebhook, ProviderWebhookState, WebhookEffect
from core.db.models.providers import ProviderStatus
from core.events import outbox
from core.organizations import commands, link_states
from core.organizations.links import SWEEP_GRACE
from core.ports.spec import PROVIDERS, Provider

log = structlog.get_logger()

PROVIDER_WEBHOOK_RETENTION: Final = timedelta(days=30)
"""Longer than any provider sends one again: Stripe for three days, Lago by hand for as long as it shows it."""
# For one that was dispatched and not processed by then: the broker lost the message, or its worker died.
WEBHOOK_REDISPATCH_AFTER: Final = timedelta(seconds=15)
PROVIDER_WEBHOOK_BATCH_SIZE: Final = 200
# After an unexpected error a webhook waits as long as it has existed, within these bounds. The minimum is longer than
# ``_RETRY_WINDOW``: until then it is left out.
MIN_WEBHOOK_RETRY_WAIT: Final = timedelta(minutes=1)
MAX_WEBHOOK_RETRY_WAIT: Final = timedelta(minutes=15)
# One that failed before is then rejected. That is nine tries, or two of a webhook that was older when it first failed.
MAX_WEBHOOK_RETRY_TIME: Final = timedelta(hours=1)
# What failed is processed when it is due within this time: a dispatch has just rescheduled it, by its own clock.
_RETRY_WINDOW: Final = 2 * WEBHOOK_REDISPATCH_AFTER
# What comes from a webhook and cannot be read at the provider: the one that was received last counts.
_STATED_EFFECTS: Final[tuple[WebhookEffect, ...]] = ("payment_failed", "payer_rejected", "payer_accepted")
# A literal, not a bound parameter: SQLite uses a partial index only if the query contains its condition.
WEBHOOK_IS_STORED: Final = "state = 'stored'"


class BadSignatureError(Exception):
    """Not signed by the provider, signed too long ago, or changed since."""


class MalformedWebhookError(Exception):
    """The signature is valid, but the body is not what the provider documents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedWebhook:
    """What is stored of a webhook: the provider's own ids and codes. ``effect`` is None for a type that is not used.

    ``org_id``: the organization of ours that it names. ``external_customer_id``: Lago's, maybe of an adopted customer;
    it is not stored. ``caused_by_us``: one of our own requests caused it.
    """

    provider: Provider
    id: str
    type: str
    effect: WebhookEffect | None
    object_id: str | None = None
    customer_id: str | None = None
    org_id: str | None = None
    external_customer_id: str | None = None
    code: str | None = None
    account_id: str | None = None
    livemode: bool | None = None
    caused_by_us: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResult:
    """``repeated``: it was stored before, and has this state."""

    state: ProviderWebhookState
    reason: str | None
    repeated: bool


class LinkRef(NamedTuple):
    """The link that a webhook is about."""

    provider: Provider
    org_id: str


class _WebhookKey(NamedTuple):
    provider: str
    id: str


def store(session: Session, webhook: ParsedWebhook, now: datetime) -> StoredResult:
    """Store it, and notify the relay on commit. One of another account or mode is stored as rejected."""
    state, reason = _initial_state(session, webhook)
    values = {
        "provider": webhook.provider,
        "id": webhook.id,
        "type": webhook.type,
        "effect": webhook.effect,
        "object_id": webhook.object_id,
        "customer_id": webhook.customer_id,
        "org_id": _adopted_org_id(session, webhook) or webhook.org_id,
        "code": webhook.code,
        "account_id": webhook.account_id,
        "livemode": webhook.livemode,
        "received_at": now,
        "state": state,
        "reason": reason,
        "due_at": now,
    }
    on_postgres = session.get_bind().dialect.name == "postgresql"
    statement = (postgresql if on_postgres else sqlite).insert(ProviderWebhook).values(values).on_conflict_do_nothing()
    if session.execute(statement.returning(ProviderWebhook.id)).one_or_none() is None:
        existing = session.get_one(ProviderWebhook, (webhook.provider, webhook.id))
        return StoredResult(state=existing.state, reason=existing.reason, repeated=True)
    if state == "stored" and on_postgres:
        session.execute(text(f"NOTIFY {outbox.EVENTS_CHANNEL}"))
    return StoredResult(state=state, reason=reason, repeated=False)


def record_refusal(database: Database, provider: Provider, now: datetime) -> None:
    """The signature of a webhook is not valid: store since when that is so. Any sender can cause it."""
    # Read first: whoever sends many of them must not take the write lock as often.
    with database.read() as session:
        if session.get_one(ProviderStatus, provider).webhooks_refused_since is not None:
            return
    is_first = (ProviderStatus.provider == provider, ProviderStatus.webhooks_refused_since.is_(None))
    with database.write() as session:
        session.execute(update(ProviderStatus).where(*is_first).values(webhooks_refused_since=now))


def record_acceptance(session: Session, provider: Provider) -> None:
    """The signature of a webhook is valid."""
    provider_status = session.get_one(ProviderStatus, provider)
    if provider_status.webhooks_refused_since is not None:
        provider_status.webhooks_refused_since = None


def replay(session: Session, provider: str, webhook_id: str, now: datetime) -> StoredResult | None:
    """Process one again; ``None``: there is no such webhook. It is ``repeated`` if it keeps its state.

    One of another account stays rejected. What a later webhook has said of a payment or a payer stays.
    """
    webhook = session.get(ProviderWebhook, (provider, webhook_id), with_for_update=True)
    if webhook is None:
        return None
    reason = _reason_against_replay(session, webhook)
    if reason is not None or webhook.state == "stored":
        return StoredResult(state=webhook.state, reason=reason, repeated=True)
    webhook.state, webhook.reason, webhook.due_at = "stored", None, now
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text(f"NOTIFY {outbox.EVENTS_CHANNEL}"))
    return StoredResult(state="stored", reason=None, repeated=False)


def _reason_against_replay(session: Session, webhook: ProviderWebhook) -> str | None:
    if webhook.effect is None:
        return "events of this type are not used"
    if (reason := _account_problem(session, webhook)) is not None:
        return reason
    if webhook.effect not in _STATED_EFFECTS:
        return None
    is_later = and_(
        ProviderWebhook.provider == webhook.provider,
        or_(ProviderWebhook.customer_id == webhook.customer_id, ProviderWebhook.org_id == webhook.org_id),
        ProviderWebhook.effect.in_(_STATED_EFFECTS),
        ProviderWebhook.state == "handled",
        ProviderWebhook.received_at > webhook.received_at,
    )
    later_id = session.scalar(select(ProviderWebhook.id).where(is_later).limit(1))
    return None if later_id is None else f"the later webhook {later_id} about the same customer was processed"


def any_due(session: Session, now: datetime) -> bool:
    """Whether a webhook is due. A cheap read that takes no lock."""
    return (
        session.scalar(
            select(ProviderWebhook.id).where(text(WEBHOOK_IS_STORED), ProviderWebhook.due_at <= now).limit(1)
        )
        is not None
    )


def any_expired(session: Session, now: datetime) -> bool:
    return session.scalar(select(ProviderWebhook.id).where(*_is_expired(now)).limit(1)) is not None


def dispatch(session: Session, now: datetime) -> int:
    """The number of webhooks to process now. They are due again after ``WEBHOOK_REDISPATCH_AFTER``."""
    due = (
        select(ProviderWebhook.provider, ProviderWebhook.id)
        .where(text(WEBHOOK_IS_STORED), ProviderWebhook.due_at <= now)
        .order_by(ProviderWebhook.due_at)
        .limit(PROVIDER_WEBHOOK_BATCH_SIZE)
        .with_for_update(skip_locked=True)
        # A CTE runs once. A subquery may run again for each row and lock more rows than the limit.
        .cte("due")
    )
    dispatched = session.execute(
        update(ProviderWebhook)
        .where(tuple_(ProviderWebhook.provider, ProviderWebhook.id).in_(select(due.c.provider, due.c.id)))
        .values(due_at=now + WEBHOOK_REDISPATCH_AFTER)
        .returning(ProviderWebhook.id)
        .execution_options(synchronize_session=False)
    )
    return len(dispatched.all())


def process(database: Database, clock: Clock, limit: int = PROVIDER_WEBHOOK_BATCH_SIZE) -> tuple[int, list[LinkRef]]:
    """Process the stored webhooks, first those that are due longest, one organization after the other.

    Returns their number, and each link that needs a remote check now, once however many webhooks were about it. An
    unexpected error is logged, and the webhooks of its link are rescheduled. Errors of the database are raised.
    """
    with database.read() as session:
        has_not_failed_or_is_due = or_(
            ProviderWebhook.reason.is_(None), ProviderWebhook.due_at <= clock() + _RETRY_WINDOW
        )
        query = (
            select(ProviderWebhook)
            .where(text(WEBHOOK_IS_STORED), has_not_failed_or_is_due)
            .order_by(ProviderWebhook.due_at, ProviderWebhook.id)
            .limit(limit)
        )
        webhooks = list(session.scalars(query))
        links = _find_links(session, webhooks)
    unmatched = [webhook for webhook in webhooks if _key(webhook) not in links]
    if unmatched:
        with database.write() as session:
            _close(session, unmatched, "ignored", "not about one of our customers")
    by_link: dict[LinkRef, list[ProviderWebhook]] = {}
    for webhook in webhooks:
        if (link := links.get(_key(webhook))) is not None:
            by_link.setdefault(link, []).append(webhook)
    to_check = []
    for link, of_link in by_link.items():
        if _try_to_request_check(database, clock, link, of_link):
            to_check.append(link)
    return len(webhooks), to_check


def delete_expired(database: Database, clock: Clock, limit: int = PROVIDER_WEBHOOK_BATCH_SIZE) -> int:
    """Delete webhooks that are processed and that no provider sends again."""
    with database.write() as session:
        expired = (
            select(ProviderWebhook.provider, ProviderWebhook.id)
            .where(*_is_expired(clock()))
            .order_by(ProviderWebhook.received_at)
            .limit(limit)
            .cte("expired")
        )
        deleted = session.execute(
            delete(ProviderWebhook)
            .where(tuple_(ProviderWebhook.provider, ProviderWebhook.id).in_(select(expired.c.provider, expired.c.id)))
            .returning(ProviderWebhook.id)
            .execution_options(synchronize_session=False)
        )
        return len(deleted.all())


def _is_expired(now: datetime) -> tuple[ColumnElement[bool], ...]:
    return ProviderWebhook.received_at < now - PROVIDER_WEBHOOK_RETENTION, ProviderWebhook.state != "stored"


def _adopted_org_id(session: Session, webhook: ParsedWebhook) -> str | None:
    """The organization that has this external id in Lago, whatever organization of ours the id looks like."""
    if webhook.external_customer_id is None:
        return None
    is_theirs = and_(
        BillingLink.provider == webhook.provider, BillingLink.external_customer_id == webhook.external_customer_id
    )
    return session.scalar(select(BillingLink.org_id).where(is_theirs))


def _initial_state(session: Session, webhook: ParsedWebhook) -> tuple[ProviderWebhookState, str | None]:
    if (problem := _account_problem(session, webhook)) is not None:
        return "rejected", problem
    if webhook.effect is None:
        return "ignored", "events of this type are not used"
    if webhook.caused_by_us:
        return "ignored", "caused by our own request"
    return "stored", None


def _account_problem(session: Session, webhook: ParsedWebhook | ProviderWebhook) -> str | None:
    provider_status = session.get_one(ProviderStatus, webhook.provider)
    if (
        None not in {webhook.account_id, provider_status.account_id}
        and webhook.account_id != provider_status.account_id
    ):
        theirs, ours = webhook.account_id, provider_status.account_id
        return f"it is from account {theirs}, but this database belongs to account {ours}"
    if None not in {webhook.livemode, provider_status.livemode} and webhook.livemode != provider_status.livemode:
        mode = {True: "live mode", False: "test mode"}
        webhook_mode, own_mode = mode[bool(webhook.livemode)], mode[bool(provider_status.livemode)]
        return f"it is from {webhook_mode}, but this database belongs to {own_mode}"
    return None


def _find_links(session: Session, webhooks: Collection[ProviderWebhook]) -> dict[_WebhookKey, LinkRef]:
    """By the customer id, or by the organization that the webhook names while the link has no customer id yet."""
    links: dict[_WebhookKey, LinkRef] = {}
    for provider in PROVIDERS:
        of_provider = [webhook for webhook in webhooks if webhook.provider == provider]
        if not of_provider:
            continue
        customer_ids = {webhook.customer_id for webhook in of_provider} - {None}
        org_ids = {webhook.org_id for webhook in of_provider} - {None}
        rows = session.execute(
            select(BillingLink.org_id, BillingLink.customer_id).where(
                BillingLink.provider == provider,
                or_(BillingLink.customer_id.in_(customer_ids), BillingLink.org_id.in_(org_ids)),
            )
        ).all()
        by_customer = {row.customer_id: row.org_id for row in rows}
        by_org_id = {row.org_id: row.org_id for row in rows}
        for webhook in of_provider:
            org_id = by_customer.get(webhook.customer_id) if webhook.customer_id else None
            org_id = org_id or by_org_id.get(webhook.org_id)
            if org_id is not None:
                links[_key(webhook)] = LinkRef(provider, org_id)
    return links


def _try_to_request_check(
    database: Database, clock: Clock, ref: LinkRef, webhooks: Collection[ProviderWebhook]
) -> bool:
    """Whether the link needs a remote check now. Of an unexpected error only the class and the place are logged."""
    try:
        with database.write() as session:
            return _request_check(session, ref, webhooks, clock())
    except Exception as error:
        if isinstance(error, DATABASE_UNAVAILABLE_ERRORS):
            raise
        name, at = type(error).__name__, raised_at(error)
    log.error("provider_webhook_failed_unexpectedly", org_id=ref.org_id, provider=ref.provider, error=name, at=at)
    with database.write() as session:
        _reschedule(session, webhooks, f"the program failed unexpectedly ({name} at {at})", clock())
    return False


def _reschedule(session: Session, webhooks: Iterable[ProviderWebhook], reason: str, now: datetime) -> None:
    """Let them wait, or reject those that have failed for too long. A stored one with a reason has failed before."""
    for webhook in webhooks:
        age = now - webhook.received_at
        if webhook.reason is not None and age >= MAX_WEBHOOK_RETRY_TIME:
            _close(session, [webhook], "rejected", reason)
            continue
        wait = min(max(age, MIN_WEBHOOK_RETRY_WAIT), MAX_WEBHOOK_RETRY_WAIT)
        session.execute(
            update(ProviderWebhook)
            .where(
                ProviderWebhook.provider == webhook.provider,
                ProviderWebhook.id == webhook.id,
                text(WEBHOOK_IS_STORED),
            )
            .values(reason=reason, due_at=now + wait)
            .execution_options(synchronize_session=False)
        )


def _request_check(session: Session, ref: LinkRef, webhooks: Collection[ProviderWebhook], now: datetime) -> bool:
    """Whether the link needs a remote check now.

    Reads the webhooks again under the organization's lock, because another process may have processed some meanwhile.
    """
    organization = commands.lock(session, ref.org_id)
    stored = session.scalars(
        select(ProviderWebhook)
        .where(
            tuple_(ProviderWebhook.provider, ProviderWebhook.id).in_([_key(webhook) for webhook in webhooks]),
            text(WEBHOOK_IS_STORED),
        )
        .order_by(ProviderWebhook.received_at)  # the last webhook about a payer decides
    ).all()
    link = session.get_one(BillingLink, (ref.org_id, ref.provider))
    if organization is None or organization.status == "deleted":
        _close(session, stored, "ignored", "the organization is deleted")
        return False
    redundant = [webhook for webhook in stored if _is_redundant(webhook, link)]
    _close(session, redundant, "ignored", "nothing new: the link already has this state of its subscription or payer")
    relevant = [webhook for webhook in stored if webhook not in redundant]
    if not relevant:
        return False
    waiting_reason = (
        "the link is parked or on hold; the provider is checked when the link is active again"
        if link.state not in {"active", "observed"}
        else None
    )
    _close(session, relevant, "handled", waiting_reason)
    session.execute(
        update(BillingLink)
        .where(BillingLink.org_id == ref.org_id, BillingLink.provider == ref.provider)
        .values(_link_changes(link, relevant, now))
        .execution_options(synchronize_session=False)
    )
    for webhook in relevant:
        webhook.org_id = ref.org_id
    return waiting_reason is None


def _is_redundant(webhook: ProviderWebhook, link: BillingLink) -> bool:
    """Our current subscription started, which we created; or another one ended, usually ours before an upgrade.

    Or Lago charges whom we know: each of our own writes of a customer comes back so.
    """
    if webhook.effect == "payer_reported":
        return webhook.object_id == link.payer_id
    if webhook.effect == "started":
        return webhook.object_id is not None and webhook.object_id == link.subscription_id
    return webhook.effect == "ended" and webhook.object_id != link.subscription_id


def _link_changes(link: BillingLink, webhooks: Iterable[ProviderWebhook], now: datetime) -> dict[str, Any]:
    """That a payment failed is stored by the remote check, its code here. A rejected payer cannot be read later."""
    has_work = literal_column(f"({LINK_HAS_WORK})", Boolean)
    values: dict[str, Any] = {
        **link_states.values_after("check_requested"),
        "checks_requested": BillingLink.checks_requested + 1,
        "next_sweep_at": case((has_work, BillingLink.next_sweep_at), else_=now + SWEEP_GRACE),
    }
    payment = link.payment_status
    for webhook in webhooks:
        if webhook.effect in {"payment_failed", "payer_rejected"}:
            values["payment_code"] = webhook.code
        if webhook.effect == "payer_rejected" and payment is None:
            payment = "payer_rejected"
            values |= {"payment_status": payment, "payment_since": now}
        if webhook.effect == "payer_accepted" and payment == "payer_rejected":
            payment = None
            values |= {"payment_status": None, "payment_since": None, "payment_code": None}
    return values


def _close(
    session: Session, webhooks: Iterable[ProviderWebhook], state: ProviderWebhookState, reason: str | None
) -> None:
    keys = [_key(webhook) for webhook in webhooks]
    if keys:
        session.execute(
            update(ProviderWebhook)
            .where(tuple_(ProviderWebhook.provider, ProviderWebhook.id).in_(keys), text(WEBHOOK_IS_STORED))
            .values(state=state, reason=reason)
            .execution_options(synchronize_session=False)
        )


def _key(webhook: ProviderWebhook) -> _WebhookKey:
    return _WebhookKey(webhook.provider, webhook.id)


def count_by_state(session: Session) -> Mapping[ProviderWebhookState, int]:
    """The number of webhooks in each state."""
    return {
        row[0]: row[1]
        for row in session.execute(select(ProviderWebhook.state, func.count()).group_by(ProviderWebhook.state))
    }
