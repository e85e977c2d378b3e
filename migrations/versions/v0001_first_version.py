"""All tables of the first version. A database of the last schema before it is converted by ``migrations.from_0009``."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "1"
down_revision = None
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
OBJECT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("secret_hash", sa.String(length=64), nullable=False),
        sa.Column("scopes", sa.String(length=500), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("revoked_at", MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "drift_reports",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("report_id", sa.String(length=64), nullable=True),
        sa.Column("lease_token", sa.String(length=36), nullable=False),
        sa.Column("stage", sa.String(length=32), nullable=False),
        sa.Column("cursor", sa.String(length=255), nullable=True),
        sa.Column("processed", sa.Integer(), nullable=False),
        sa.Column("counts", OBJECT, nullable=False),
        sa.Column("started_at", MOMENT, nullable=False),
        sa.Column("heartbeat_at", MOMENT, nullable=False),
        sa.Column("finished_at", MOMENT, nullable=True),
        sa.Column("repair_started_at", MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("run_id"),
        sa.UniqueConstraint("report_id"),
    )
    op.create_index("ix_drift_reports_started_at", "drift_reports", ["started_at"])
    op.create_table(
        "events",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("type", sa.String(length=64), nullable=False),
        sa.Column("org_id", sa.String(length=64), nullable=False),
        sa.Column("actor", sa.String(length=255), nullable=False),
        sa.Column("source", sa.String(length=255), nullable=False),
        sa.Column("caused_by", sa.String(length=600), nullable=True),
        sa.Column("data", OBJECT, nullable=False),
        sa.Column("occurred_at", MOMENT, nullable=False),
        sa.Column("published_at", MOMENT, nullable=True),
        sa.Column("lease_token", sa.String(length=36), nullable=True),
        sa.Column("lease_until", MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_org_id", "events", ["org_id", "seq"])
    _partial_index("ix_events_unpublished", "events", ["seq"], "published_at IS NULL")
    op.create_table(
        "idempotency_records",
        sa.Column("caller", sa.String(length=300), nullable=False),
        sa.Column("idempotency_key", sa.String(length=255), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("caller", "idempotency_key"),
    )
    op.create_index("ix_idempotency_records_expires_at", "idempotency_records", ["expires_at"])
    op.create_table(
        "job_locks",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("lease_token", sa.String(length=36), nullable=True),
        sa.Column("lease_until", MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "organizations",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("name_key", sa.String(length=1000), nullable=False),
        sa.Column("plan_tier", sa.String(length=200), nullable=False),
        sa.Column("pending_plan_tier", sa.String(length=200), nullable=True),
        sa.Column("plan_effective_at", MOMENT, nullable=True),
        sa.Column("downgrade_recheck_at", MOMENT, nullable=True),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("billing_email", sa.String(length=512), nullable=True),
        sa.Column("currency", sa.String(length=3), nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_organizations_created_at", "organizations", ["created_at", "id"])
    _partial_index(
        "ix_organizations_plan_effective_at", "organizations", ["plan_effective_at"], "pending_plan_tier IS NOT NULL"
    )
    op.create_index("ix_organizations_plan_tier", "organizations", ["plan_tier"])
    _partial_index("uq_organizations_name_key", "organizations", ["name_key"], "status <> 'deleted'", unique=True)
    provider_status = op.create_table(
        "provider_status",
        sa.Column("provider", sa.String(length=16), nullable=False),
        sa.Column("account_id", sa.String(length=255), nullable=True),
        sa.Column("livemode", sa.Boolean(), nullable=True),
        sa.Column("consecutive_failures", sa.Integer(), nullable=False),
        sa.Column("breaker_reason", sa.String(length=16), nullable=True),
        sa.Column("breaker_message", sa.Text(), nullable=True),
        sa.Column("open_since", MOMENT, nullable=True),
        sa.Column("probe_at", MOMENT, nullable=True),
        sa.Column("updated_at", MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("provider"),
    )
    op.create_table(
        "provider_webhooks",
        sa.Column("provider", sa.String(length=16), nullable=False),
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("type", sa.String(length=255), nullable=False),
        sa.Column("effect", sa.String(length=16), nullable=True),
        sa.Column("object_id", sa.String(length=255), nullable=True),
        sa.Column("customer_id", sa.String(length=255), nullable=True),
        sa.Column("org_id", sa.String(length=64), nullable=True),
        sa.Column("code", sa.String(length=255), nullable=True),
        sa.Column("account_id", sa.String(length=255), nullable=True),
        sa.Column("livemode", sa.Boolean(), nullable=True),
        sa.Column("received_at", MOMENT, nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("due_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("provider", "id"),
    )
    op.create_index("ix_provider_webhooks_received_at", "provider_webhooks", ["received_at"])
    _partial_index("ix_provider_webhooks_stored", "provider_webhooks", ["due_at"], "state = 'stored'")
    op.create_table(
        "service_events",
        sa.Column("source", sa.String(length=255), nullable=False),
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("type", sa.String(length=255), nullable=True),
        sa.Column("subject", sa.String(length=255), nullable=True),
        sa.Column("occurred_at", MOMENT, nullable=True),
        sa.Column("received_at", MOMENT, nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("org_id", sa.String(length=64), nullable=True),
        sa.Column("data", OBJECT, nullable=True),
        sa.PrimaryKeyConstraint("source", "id"),
    )
    op.create_index("ix_service_events_status", "service_events", ["status", "received_at"])
    op.create_index("ix_service_events_subject", "service_events", ["subject", "type", "status"])
    op.create_table(
        "users",
        sa.Column("user_id", sa.String(length=255), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=True),
        sa.Column("email", sa.String(length=512), nullable=True),
        sa.Column("first_seen_at", MOMENT, nullable=False),
        sa.Column("last_seen_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("user_id"),
    )
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("url", sa.String(length=2000), nullable=False),
        sa.Column("events", sa.String(length=1000), nullable=False),
        sa.Column("description", sa.String(length=200), nullable=True),
        sa.Column("secret_generation", sa.Integer(), nullable=False),
        sa.Column("rotated_at", MOMENT, nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("disabled_at", MOMENT, nullable=True),
        sa.Column("disabled_reason", sa.String(length=200), nullable=True),
        sa.Column("consecutive_failures", sa.Integer(), nullable=False),
        sa.Column("backoff_until", MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "billing_links",
        sa.Column("org_id", sa.String(length=64), nullable=False),
        sa.Column("provider", sa.String(length=16), nullable=False),
        sa.Column("customer_id", sa.String(length=255), nullable=True),
        sa.Column("subscription_id", sa.String(length=255), nullable=True),
        sa.Column("account_id", sa.String(length=255), nullable=True),
        sa.Column("livemode", sa.Boolean(), nullable=True),
        sa.Column("created_at", MOMENT, nullable=True),
        sa.Column("desired_version", sa.BigInteger(), nullable=False),
        sa.Column("applied_version", sa.BigInteger(), nullable=False),
        sa.Column("customer_state", sa.String(length=12), nullable=False),
        sa.Column("customer_fingerprint", sa.String(length=64), nullable=True),
        sa.Column("plan_state", sa.String(length=8), nullable=False),
        sa.Column("applied_plan", sa.String(length=255), nullable=True),
        sa.Column("applied_next_plan", sa.String(length=255), nullable=True),
        sa.Column("payer_id", sa.String(length=255), nullable=True),
        sa.Column("synced_at", MOMENT, nullable=True),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("not_before", MOMENT, nullable=True),
        sa.Column("not_before_reason", sa.String(length=12), nullable=True),
        sa.Column("waiting_since", MOMENT, nullable=True),
        sa.Column("next_sweep_at", MOMENT, nullable=False),
        sa.Column("error_kind", sa.String(length=32), nullable=True),
        sa.Column("error_code", sa.String(length=255), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("error_request_id", sa.String(length=255), nullable=True),
        sa.Column("error_at", MOMENT, nullable=True),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("intent", OBJECT, nullable=True),
        sa.Column("checks_requested", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("checks_done", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("payment_status", sa.String(length=16), nullable=True),
        sa.Column("payment_since", MOMENT, nullable=True),
        sa.Column("payment_code", sa.String(length=255), nullable=True),
        sa.Column("lease_token", sa.String(length=36), nullable=True),
        sa.Column("lease_until", MOMENT, nullable=True),
        sa.ForeignKeyConstraint(
            ["org_id"],
            ["organizations.id"],
        ),
        sa.PrimaryKeyConstraint("org_id", "provider"),
    )
    _partial_index(
        "ix_billing_links_due",
        "billing_links",
        ["provider", "next_sweep_at"],
        (
            "state = 'active' AND (applied_version < desired_version OR intent IS NOT NULL"
            " OR checks_done < checks_requested)"
        ),
    )
    _partial_index("ix_billing_links_parked", "billing_links", ["provider"], "state <> 'active'")
    _partial_index(
        "uq_billing_links_customer_id",
        "billing_links",
        ["provider", "customer_id"],
        "customer_id IS NOT NULL",
        unique=True,
    )
    op.create_table(
        "drift_findings",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("org_id", sa.String(length=64), nullable=True),
        sa.Column("repairable", sa.Boolean(), nullable=False),
        sa.Column("body", OBJECT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["drift_reports.run_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "seq"),
    )
    op.create_table(
        "drift_listings",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("provider", sa.String(length=16), nullable=False),
        sa.Column("object_type", sa.String(length=16), nullable=False),
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("org_id", sa.String(length=64), nullable=True),
        sa.Column("customer_id", sa.String(length=255), nullable=True),
        sa.Column("observed", OBJECT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["drift_reports.run_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "provider", "object_type", "id"),
    )
    op.create_index(
        "ix_drift_listings_customer_id", "drift_listings", ["run_id", "provider", "object_type", "customer_id"]
    )
    op.create_index("ix_drift_listings_org_id", "drift_listings", ["run_id", "provider", "object_type", "org_id"])
    op.create_table(
        "invitations",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("org_id", sa.String(length=64), nullable=False),
        sa.Column("email", sa.String(length=512), nullable=False),
        sa.Column("email_key", sa.String(length=1024), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("invited_by", sa.String(length=255), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("emails_sent", sa.Integer(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.Column("closed_at", MOMENT, nullable=True),
        sa.ForeignKeyConstraint(
            ["org_id"],
            ["organizations.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    _partial_index("uq_invitations_pending", "invitations", ["org_id", "email_key"], "state = 'pending'", unique=True)
    op.create_table(
        "memberships",
        sa.Column("org_id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=255), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("joined_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["org_id"],
            ["organizations.id"],
        ),
        sa.PrimaryKeyConstraint("org_id", "user_id"),
    )
    op.create_index("ix_memberships_user_id", "memberships", ["user_id"])
    op.create_table(
        "webhook_deliveries",
        sa.Column("endpoint_id", sa.String(length=32), nullable=False),
        sa.Column("event_seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("type", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_attempt_at", MOMENT, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("last_attempt_at", MOMENT, nullable=True),
        sa.Column("last_status", sa.Integer(), nullable=True),
        sa.Column("last_error", sa.String(length=32), nullable=True),
        sa.Column("delivered_at", MOMENT, nullable=True),
        sa.Column("lease_token", sa.String(length=36), nullable=True),
        sa.Column("lease_until", MOMENT, nullable=True),
        sa.ForeignKeyConstraint(
            ["endpoint_id"],
            ["webhook_endpoints.id"],
        ),
        sa.ForeignKeyConstraint(
            ["event_seq"],
            ["events.seq"],
        ),
        sa.PrimaryKeyConstraint("endpoint_id", "event_seq"),
    )
    _partial_index(
        "ix_webhook_deliveries_due", "webhook_deliveries", ["endpoint_id", "next_attempt_at"], "state = 'pending'"
    )
    _partial_index("ix_webhook_deliveries_failed", "webhook_deliveries", ["last_attempt_at"], "state = 'failed'")
    _partial_index("ix_webhook_deliveries_leased", "webhook_deliveries", ["endpoint_id"], "lease_token IS NOT NULL")
    op.create_table(
        "emails",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("cause", sa.String(length=80), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("recipient", sa.String(length=512), nullable=False),
        sa.Column("org_id", sa.String(length=64), nullable=False),
        sa.Column("invitation_id", sa.String(length=64), nullable=True),
        sa.Column("after_version", sa.BigInteger(), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_attempt_at", MOMENT, nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("closed_at", MOMENT, nullable=True),
        sa.Column("lease_token", sa.String(length=36), nullable=True),
        sa.Column("lease_until", MOMENT, nullable=True),
        sa.ForeignKeyConstraint(
            ["invitation_id"],
            ["invitations.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    _partial_index("ix_emails_closed_at", "emails", ["closed_at"], "state <> 'pending'")
    _partial_index("ix_emails_due", "emails", ["next_attempt_at"], "state = 'pending'")
    _partial_index("ix_emails_failed", "emails", ["created_at"], "state = 'failed'")
    op.create_index("ix_emails_org_id", "emails", ["org_id", "kind", "created_at"])
    op.create_index("uq_emails_cause", "emails", ["cause", "kind", "recipient"], unique=True)
    op.create_table(
        "invitation_tokens",
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("invitation_id", sa.String(length=64), nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["invitation_id"],
            ["invitations.id"],
        ),
        sa.PrimaryKeyConstraint("token_hash"),
    )
    op.bulk_insert(provider_status, [{"provider": each, "consecutive_failures": 0} for each in ("stripe", "lago")])


def _partial_index(name: str, table: str, columns: list[str], condition: str, *, unique: bool = False) -> None:
    where = sa.text(condition)
    op.create_index(name, table, columns, unique=unique, sqlite_where=where, postgresql_where=where)
