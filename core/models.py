"""The tables. One Alembic history serves SQLite and Postgres; what the types promise holds on both.

``billing_links`` says what is left to do: a link is in sync when ``applied_version == wanted_version`` and it has no
intent. ``wanted_version`` repeats ``organizations.billing_version`` and is written by the same statement's transaction
(decision 0002): one partial index on the link alone answers "what is due" at any size.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    TypeDecorator,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from core.gateways import Json

Status = Literal["active", "suspended", "deleted"]
Role = Literal["owner", "billing_admin", "member"]
LinkState = Literal["open", "parked", "held"]
Verdict = Literal["accepted", "refused", "waiting", "superseded"]
StopKind = Literal["unavailable", "misconfigured", "wrong_account"]
Concern = Literal["look", "began", "ended", "failed", "refused", "taken"]
HintState = Literal["stored", "handled", "ignored", "refused"]
Payment = Literal["failed", "refused"]
DeliveryState = Literal["pending", "delivered", "failed"]
InvitationState = Literal["open", "accepted", "revoked"]
MailState = Literal["open", "sent", "given_up", "overtaken"]
MailKind = Literal[
    "welcome", "invitation", "plan_upgraded", "downgrade_scheduled", "downgrade_taken_back", "downgrade_took_effect"
]

STATUSES: tuple[Status, ...] = ("active", "suspended", "deleted")
ROLES: tuple[Role, ...] = ("owner", "billing_admin", "member")

LINK_IS_BEHIND = "applied_version < wanted_version OR intent IS NOT NULL"
LINK_HAS_WORK = f"{LINK_IS_BEHIND} OR looked < hinted"


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC in Python on both databases; a naive datetime is refused, since nobody can say what it means."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            message = "a naive datetime cannot be stored"
            raise ValueError(message)
        moment = value if value.tzinfo is UTC else value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - the base class names it
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# A 64-bit counter on Postgres; SQLite only counts a column up when it is its own INTEGER.
Counter = BigInteger().with_variant(Integer(), "sqlite")
# NULL must be SQL's own: "intent IS NULL" is part of an index.
JsonObject = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


class Base(DeclarativeBase):
    type_annotation_map = {datetime: UtcDateTime, dict[str, Any]: JsonObject}  # noqa: RUF012 - SQLAlchemy's own form


class Organization(Base):
    __tablename__ = "organizations"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    name_key: Mapped[str] = mapped_column(String(1000))
    plan_tier: Mapped[str] = mapped_column(String(200))
    pending_plan_tier: Mapped[str | None] = mapped_column(String(200))
    plan_effective_at: Mapped[datetime | None]
    status: Mapped[str] = mapped_column(String(16))
    billing_email: Mapped[str | None] = mapped_column(String(512))
    currency: Mapped[str | None] = mapped_column(String(3))
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    billing_version: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (
        Index(
            "uq_organizations_name_key",
            "name_key",
            unique=True,
            sqlite_where=text("status <> 'deleted'"),
            postgresql_where=text("status <> 'deleted'"),
        ),
        Index("ix_organizations_plan_tier", "plan_tier"),
        Index("ix_organizations_created_at", "created_at", "id"),
        Index(
            "ix_organizations_plan_effective_at",
            "plan_effective_at",
            sqlite_where=text("pending_plan_tier IS NOT NULL"),
            postgresql_where=text("pending_plan_tier IS NOT NULL"),
        ),
    )


class Membership(Base):
    __tablename__ = "memberships"

    org_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    user_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    role: Mapped[str] = mapped_column(String(16))
    joined_at: Mapped[datetime]

    __table_args__ = (Index("ix_memberships_user_id", "user_id"),)


class Event(Base):
    """The outbox and the audit in one; rows are only ever added, and marked published."""

    __tablename__ = "events"

    seq: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(36), unique=True)
    type: Mapped[str] = mapped_column(String(64))
    org_id: Mapped[str] = mapped_column(String(64))
    actor: Mapped[str] = mapped_column(String(255))
    source: Mapped[str] = mapped_column(String(255))
    caused_by: Mapped[str | None] = mapped_column(String(600))
    data: Mapped[dict[str, Any]]
    occurred_at: Mapped[datetime]
    published_at: Mapped[datetime | None]
    lease_token: Mapped[str | None] = mapped_column(String(36))
    lease_until: Mapped[datetime | None]

    __table_args__ = (
        Index(
            "ix_events_unpublished",
            "seq",
            sqlite_where=text("published_at IS NULL"),
            postgresql_where=text("published_at IS NULL"),
        ),
        Index("ix_events_org_id", "org_id", "seq"),
        {"sqlite_autoincrement": True},
    )


class ReceivedEvent(Base):
    """What another service sent, once each, with what became of it."""

    __tablename__ = "received_events"

    source: Mapped[str] = mapped_column(String(255), primary_key=True)
    id: Mapped[str] = mapped_column(String(255), primary_key=True)
    type: Mapped[str | None] = mapped_column(String(255))
    subject: Mapped[str | None] = mapped_column(String(255))
    occurred_at: Mapped[datetime | None]
    received_at: Mapped[datetime]
    verdict: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(Text)
    org_id: Mapped[str | None] = mapped_column(String(64))
    data: Mapped[dict[str, Any] | None]

    __table_args__ = (
        Index("ix_received_events_subject", "subject", "type", "verdict"),
        Index("ix_received_events_verdict", "verdict", "received_at"),
    )


class BillingLink(Base):
    """One organization at one biller: the ids, what is applied, what is left to do, and who works on it now."""

    __tablename__ = "billing_links"

    org_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    provider: Mapped[str] = mapped_column(String(16), primary_key=True)

    customer_id: Mapped[str | None] = mapped_column(String(255))
    subscription_id: Mapped[str | None] = mapped_column(String(255))
    account_id: Mapped[str | None] = mapped_column(String(255))
    livemode: Mapped[bool | None] = mapped_column(Boolean)

    made_at: Mapped[datetime | None]
    """NULL: before this column was."""
    wanted_version: Mapped[int] = mapped_column(BigInteger)
    applied_version: Mapped[int] = mapped_column(BigInteger)
    applied_customer: Mapped[str | None] = mapped_column(String(64))
    """Digest of the customer as last made there; NULL: not known, so it is read or made again."""
    applied_plan: Mapped[str | None] = mapped_column(String(255))
    applied_next_plan: Mapped[str | None] = mapped_column(String(255))
    payer_id: Mapped[str | None] = mapped_column(String(255))
    """Lago only: the Stripe customer it was told to charge. While it is set, nothing else may charge."""
    synced_at: Mapped[datetime | None]

    state: Mapped[str] = mapped_column(String(8))
    """open; parked (leaves when its data changes or a person retries); held (leaves only through a person)."""
    attempts: Mapped[int] = mapped_column(Integer)
    next_attempt_at: Mapped[datetime | None]
    """No claim before this time; NULL: now."""
    rest_until: Mapped[datetime | None]
    """No round before this time either: what changes meanwhile is taken along by the next one."""
    sweep_at: Mapped[datetime]
    """When the sweep hands a link that is behind to the broker once more."""
    error_kind: Mapped[str | None] = mapped_column(String(32))
    error_code: Mapped[str | None] = mapped_column(String(255))
    error_message: Mapped[str | None] = mapped_column(Text)
    error_request_id: Mapped[str | None] = mapped_column(String(255))
    error_at: Mapped[datetime | None]

    lease_token: Mapped[str | None] = mapped_column(String(36))
    lease_until: Mapped[datetime | None]
    generation: Mapped[int] = mapped_column(Integer)
    intent: Mapped[dict[str, Any] | None]

    hinted: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """How many hints came that something changed there."""
    looked: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """How many of them a look has answered; fewer: one is due."""
    payment: Mapped[Payment | None] = mapped_column(String(16))
    """What is wrong with paying there: ``failed``, an invoice was not paid; ``refused``, the payer is not taken."""
    payment_since: Mapped[datetime | None]
    payment_code: Mapped[str | None] = mapped_column(String(255))
    """The biller's own word for it, as it was last told."""

    __table_args__ = (
        Index(
            "uq_billing_links_customer_id",
            "provider",
            "customer_id",
            unique=True,
            sqlite_where=text("customer_id IS NOT NULL"),
            postgresql_where=text("customer_id IS NOT NULL"),
        ),
        Index(
            "ix_billing_links_due",
            "provider",
            "sweep_at",
            sqlite_where=text(f"state = 'open' AND ({LINK_HAS_WORK})"),
            postgresql_where=text(f"state = 'open' AND ({LINK_HAS_WORK})"),
        ),
        Index(
            "ix_billing_links_parked",
            "provider",
            sqlite_where=text("state <> 'open'"),
            postgresql_where=text("state <> 'open'"),
        ),
    )


class Hint(Base):
    """A webhook, stored once: that something changed at a biller and where to look, never how it is."""

    __tablename__ = "hints"

    provider: Mapped[str] = mapped_column(String(16), primary_key=True)
    id: Mapped[str] = mapped_column(String(255), primary_key=True)
    """The biller's own: Stripe's event, Lago's unique key."""
    type: Mapped[str] = mapped_column(String(255))
    concern: Mapped[Concern | None] = mapped_column(String(16))
    object_id: Mapped[str | None] = mapped_column(String(255))
    customer_id: Mapped[str | None] = mapped_column(String(255))
    org_id: Mapped[str | None] = mapped_column(String(64))
    code: Mapped[str | None] = mapped_column(String(255))
    """The reason of a failure, in the biller's word."""
    account_id: Mapped[str | None] = mapped_column(String(255))
    livemode: Mapped[bool | None] = mapped_column(Boolean)
    received_at: Mapped[datetime]
    state: Mapped[HintState] = mapped_column(String(8))
    reason: Mapped[str | None] = mapped_column(Text)
    due_at: Mapped[datetime]
    """When somebody is told of it once more, while it is stored."""

    __table_args__ = (
        Index(
            "ix_hints_stored",
            "due_at",
            sqlite_where=text("state = 'stored'"),
            postgresql_where=text("state = 'stored'"),
        ),
        Index("ix_hints_received_at", "received_at"),
    )


class BillerStanding(Base):
    """One biller as all processes see it: whose account it is, and whether it is stopped. Its row is always there."""

    __tablename__ = "billers"

    provider: Mapped[str] = mapped_column(String(16), primary_key=True)
    account_id: Mapped[str | None] = mapped_column(String(255))
    """Stored at first use and never replaced: the links' ids mean nothing in another account."""
    livemode: Mapped[bool | None] = mapped_column(Boolean)
    failures: Mapped[int] = mapped_column(Integer)
    """Unavailable answers in a row, over all workers."""
    stop_kind: Mapped[StopKind | None] = mapped_column(String(16))
    """NULL: it is not stopped."""
    stop_message: Mapped[str | None] = mapped_column(Text)
    stopped_since: Mapped[datetime | None]
    probe_at: Mapped[datetime | None]
    """While stopped: no turn before this time, and one then."""
    updated_at: Mapped[datetime | None]


class DriftPlan(Base):
    """One comparison of ours with what the billers hold: a run that can be taken up again, then a plan under its id."""

    __tablename__ = "drift_plans"

    run_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    plan_id: Mapped[str | None] = mapped_column(String(64), unique=True)
    """SHA-256 of the findings; NULL until the run has ended."""
    token: Mapped[str] = mapped_column(String(36))
    """Whoever goes on with the run replaces it, so that whoever had it before stops."""
    stage: Mapped[str] = mapped_column(String(32))
    cursor: Mapped[str | None] = mapped_column(String(255))
    done: Mapped[int] = mapped_column(Integer)
    """Of this stage: rows listed, or organizations compared."""
    counts: Mapped[dict[str, Any]]
    started_at: Mapped[datetime]
    touched_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    applied_at: Mapped[datetime | None]

    __table_args__ = (Index("ix_drift_plans_started_at", "started_at"),)


class DriftSighting(Base):
    """A customer or subscription as a biller listed it; gone when its run has ended."""

    __tablename__ = "drift_sightings"

    run_id: Mapped[str] = mapped_column(ForeignKey("drift_plans.run_id", ondelete="CASCADE"), primary_key=True)
    provider: Mapped[str] = mapped_column(String(16), primary_key=True)
    noun: Mapped[str] = mapped_column(String(16), primary_key=True)
    id: Mapped[str] = mapped_column(String(255), primary_key=True)
    org_id: Mapped[str | None] = mapped_column(String(64))
    """The organization that it belongs to by what the biller says; NULL: it names none of our form."""
    customer_id: Mapped[str | None] = mapped_column(String(255))
    seen: Mapped[dict[str, Any]]

    __table_args__ = (
        Index("ix_drift_sightings_org_id", "run_id", "provider", "noun", "org_id"),
        Index("ix_drift_sightings_customer_id", "run_id", "provider", "noun", "customer_id"),
    )


class DriftFinding(Base):
    """What was found about one organization, or about a stranger that names itself one."""

    __tablename__ = "drift_findings"

    run_id: Mapped[str] = mapped_column(ForeignKey("drift_plans.run_id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(Integer, primary_key=True)
    org_id: Mapped[str | None] = mapped_column(String(64))
    repairable: Mapped[bool] = mapped_column(Boolean)
    found: Mapped[dict[str, Any]]


class Person(Base):
    """Somebody who has signed in, or changed something: from then on no sign-in makes an organization any more."""

    __tablename__ = "people"

    user_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    name: Mapped[str | None] = mapped_column(String(200))
    email: Mapped[str | None] = mapped_column(String(512))
    """Only one that the sign-in service has verified."""
    first_seen_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]


class ApiKey(Base):
    """A service account. The key itself is nowhere; whoever made it was shown it once."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    secret_hash: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[str] = mapped_column(String(500))
    """With blanks between, as OAuth writes them."""
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]


class KeptAnswer(Base):
    """What a request under an Idempotency-Key was answered, stored in the transaction of its change."""

    __tablename__ = "kept_answers"

    caller: Mapped[str] = mapped_column(String(300), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    """Digest of what was asked: the same key for something else is refused."""
    status: Mapped[int] = mapped_column(Integer)
    body: Mapped[str] = mapped_column(Text)
    """As sent, byte for byte."""
    expires_at: Mapped[datetime]

    __table_args__ = (Index("ix_kept_answers_expires_at", "expires_at"),)


class Invitation(Base):
    """Somebody is asked to join by mail. The tokens that were mailed lie in ``invitation_tokens``, hashed."""

    __tablename__ = "invitations"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    org_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    email: Mapped[str] = mapped_column(String(512))
    email_key: Mapped[str] = mapped_column(String(1024))
    role: Mapped[str] = mapped_column(String(16))
    invited_by: Mapped[str | None] = mapped_column(String(255))
    """The user id; NULL: a service."""
    state: Mapped[InvitationState] = mapped_column(String(16))
    mailed: Mapped[int] = mapped_column(Integer)
    """How many mails it was given."""
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    closed_at: Mapped[datetime | None]

    __table_args__ = (
        Index(
            "uq_invitations_open",
            "org_id",
            "email_key",
            unique=True,
            sqlite_where=text("state = 'open'"),
            postgresql_where=text("state = 'open'"),
        ),
    )


class InvitationToken(Base):
    """One mail's token for one invitation. The token itself is in that mail and nowhere else."""

    __tablename__ = "invitation_tokens"

    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    invitation_id: Mapped[str] = mapped_column(ForeignKey("invitations.id"))
    expires_at: Mapped[datetime]


class Mail(Base):
    """One mail to one address, because of one event or invitation."""

    __tablename__ = "mails"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    """Its Message-ID is made of this, the same at each try."""
    cause: Mapped[str] = mapped_column(String(80))
    """An event's id, or an invitation's and the how many-eth mail of it this is."""
    kind: Mapped[MailKind] = mapped_column(String(32))
    recipient: Mapped[str] = mapped_column(String(512))
    org_id: Mapped[str] = mapped_column(String(64))
    """No foreign key: the relay, which writes many at once, would wait for every organization that is locked."""
    invitation_id: Mapped[str | None] = mapped_column(ForeignKey("invitations.id"))
    waits_for_version: Mapped[int | None] = mapped_column(BigInteger)
    """Not sent before both billers hold it."""
    state: Mapped[MailState] = mapped_column(String(16))
    """open; sent; given_up (refused for good, see ``error``); overtaken (not true any more when its turn came)."""
    attempts: Mapped[int] = mapped_column(Integer)
    next_attempt_at: Mapped[datetime]
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]
    closed_at: Mapped[datetime | None]
    lease_token: Mapped[str | None] = mapped_column(String(36))
    lease_until: Mapped[datetime | None]

    __table_args__ = (
        Index("uq_mails_cause", "cause", "kind", "recipient", unique=True),
        Index(
            "ix_mails_due",
            "next_attempt_at",
            sqlite_where=text("state = 'open'"),
            postgresql_where=text("state = 'open'"),
        ),
        Index(
            "ix_mails_given_up",
            "created_at",
            sqlite_where=text("state = 'given_up'"),
            postgresql_where=text("state = 'given_up'"),
        ),
        Index("ix_mails_org_id", "org_id", "kind", "created_at"),
        Index(
            "ix_mails_closed_at",
            "closed_at",
            sqlite_where=text("state <> 'open'"),
            postgresql_where=text("state <> 'open'"),
        ),
    )


class WebhookEndpoint(Base):
    """An address of another service that is told what happens. Its secret is nowhere: it is derived for each use."""

    __tablename__ = "webhook_endpoints"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    url: Mapped[str] = mapped_column(String(2000))
    events: Mapped[str] = mapped_column(String(1000))
    """With blanks between; empty: all there are."""
    description: Mapped[str | None] = mapped_column(String(200))
    generation: Mapped[int] = mapped_column(Integer)
    """Of its secret; each rotation raises it."""
    rotated_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    disabled_at: Mapped[datetime | None]
    """NULL: it is told."""
    disabled_because: Mapped[str | None] = mapped_column(String(200))
    failures: Mapped[int] = mapped_column(Integer)
    """In a row, whichever event it was."""
    rest_until: Mapped[datetime | None]
    """Nothing is sent there before."""


class WebhookDelivery(Base):
    """One event to one endpoint, by the endpoint's name of it."""

    __tablename__ = "webhook_deliveries"

    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id"), primary_key=True)
    event_seq: Mapped[int] = mapped_column(Counter, ForeignKey("events.seq"), primary_key=True)
    type: Mapped[str] = mapped_column(String(64))
    state: Mapped[DeliveryState] = mapped_column(String(16))
    attempts: Mapped[int] = mapped_column(Integer)
    next_attempt_at: Mapped[datetime]
    made_at: Mapped[datetime]
    lease_token: Mapped[str | None] = mapped_column(String(36))
    lease_until: Mapped[datetime | None]
    last_attempt_at: Mapped[datetime | None]
    last_status: Mapped[int | None] = mapped_column(Integer)
    """NULL: there was no answer, see ``last_error``."""
    last_error: Mapped[str | None] = mapped_column(String(32))
    delivered_at: Mapped[datetime | None]

    __table_args__ = (
        Index(
            "ix_webhook_deliveries_due",
            "endpoint_id",
            "next_attempt_at",
            sqlite_where=text("state = 'pending'"),
            postgresql_where=text("state = 'pending'"),
        ),
        Index(
            "ix_webhook_deliveries_leased",
            "endpoint_id",
            sqlite_where=text("lease_token IS NOT NULL"),
            postgresql_where=text("lease_token IS NOT NULL"),
        ),
        Index(
            "ix_webhook_deliveries_failed",
            "last_attempt_at",
            sqlite_where=text("state = 'failed'"),
            postgresql_where=text("state = 'failed'"),
        ),
    )


class Job(Base):
    """A lease for a periodic job, so that two schedulers do the work once."""

    __tablename__ = "jobs"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    lease_token: Mapped[str | None] = mapped_column(String(36))
    lease_until: Mapped[datetime | None]


EventData = dict[str, Json]
