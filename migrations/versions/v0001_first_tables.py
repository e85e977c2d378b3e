"""The first tables: organizations, memberships, events, service events, billing links, job locks."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
OBJECT = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
COUNTER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _organizations()
    _memberships()
    _events()
    _received_events()
    _billing_links()
    _jobs()


def _organizations() -> None:
    op.create_table(
        "organizations",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("name_key", sa.String(length=1000), nullable=False),
        sa.Column("plan_tier", sa.String(length=200), nullable=False),
        sa.Column("pending_plan_tier", sa.String(length=200), nullable=True),
        sa.Column("plan_effective_at", MOMENT, nullable=True),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("billing_email", sa.String(length=512), nullable=True),
        sa.Column("currency", sa.String(length=3), nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.Column("billing_version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "ix_organizations_plan_effective_at",
        "organizations",
        ["plan_effective_at"],
        unique=False,
        sqlite_where=sa.text("pending_plan_tier IS NOT NULL"),
        postgresql_where=sa.text("pending_plan_tier IS NOT NULL"),
    )
    op.create_index("ix_organizations_plan_tier", "organizations", ["plan_tier"], unique=False)
    op.create_index(
        "uq_organizations_name_key",
        "organizations",
        ["name_key"],
        unique=True,
        sqlite_where=sa.text("status <> 'deleted'"),
        postgresql_where=sa.text("status <> 'deleted'"),
    )


def _memberships() -> None:
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
    op.create_index("ix_memberships_user_id", "memberships", ["user_id"], unique=False)


def _events() -> None:
    op.create_table(
        "events",
        sa.Column("seq", COUNTER, autoincrement=True, nullable=False),
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
    op.create_index("ix_events_org_id", "events", ["org_id", "seq"], unique=False)
    op.create_index(
        "ix_events_unpublished",
        "events",
        ["seq"],
        unique=False,
        sqlite_where=sa.text("published_at IS NULL"),
        postgresql_where=sa.text("published_at IS NULL"),
    )


def _received_events() -> None:
    op.create_table(
        "received_events",
        sa.Column("source", sa.String(length=255), nullable=False),
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("type", sa.String(length=255), nullable=True),
        sa.Column("subject", sa.String(length=255), nullable=True),
        sa.Column("occurred_at", MOMENT, nullable=True),
        sa.Column("received_at", MOMENT, nullable=False),
        sa.Column("verdict", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("org_id", sa.String(length=64), nullable=True),
        sa.Column("data", OBJECT, nullable=True),
        sa.PrimaryKeyConstraint("source", "id"),
    )
    op.create_index("ix_received_events_subject", "received_events", ["subject", "type", "verdict"], unique=False)
    op.create_index("ix_received_events_verdict", "received_events", ["verdict", "received_at"], unique=False)


def _billing_links() -> None:
    op.create_table(
        "billing_links",
        sa.Column("org_id", sa.String(length=64), nullable=False),
        sa.Column("provider", sa.String(length=16), nullable=False),
        sa.Column("customer_id", sa.String(length=255), nullable=True),
        sa.Column("subscription_id", sa.String(length=255), nullable=True),
        sa.Column("account_id", sa.String(length=255), nullable=True),
        sa.Column("livemode", sa.Boolean(), nullable=True),
        sa.Column("wanted_version", sa.BigInteger(), nullable=False),
        sa.Column("applied_version", sa.BigInteger(), nullable=False),
        sa.Column("applied_customer", sa.String(length=64), nullable=True),
        sa.Column("applied_plan", sa.String(length=255), nullable=True),
        sa.Column("applied_next_plan", sa.String(length=255), nullable=True),
        sa.Column("payer_id", sa.String(length=255), nullable=True),
        sa.Column("synced_at", MOMENT, nullable=True),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_attempt_at", MOMENT, nullable=True),
        sa.Column("rest_until", MOMENT, nullable=True),
        sa.Column("sweep_at", MOMENT, nullable=False),
        sa.Column("error_kind", sa.String(length=32), nullable=True),
        sa.Column("error_code", sa.String(length=255), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("error_request_id", sa.String(length=255), nullable=True),
        sa.Column("error_at", MOMENT, nullable=True),
        sa.Column("lease_token", sa.String(length=36), nullable=True),
        sa.Column("lease_until", MOMENT, nullable=True),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("intent", OBJECT, nullable=True),
        sa.ForeignKeyConstraint(
            ["org_id"],
            ["organizations.id"],
        ),
        sa.PrimaryKeyConstraint("org_id", "provider"),
    )
    op.create_index(
        "ix_billing_links_due",
        "billing_links",
        ["provider", "sweep_at"],
        unique=False,
        sqlite_where=sa.text("state = 'open' AND (applied_version < wanted_version OR intent IS NOT NULL)"),
        postgresql_where=sa.text("state = 'open' AND (applied_version < wanted_version OR intent IS NOT NULL)"),
    )
    op.create_index(
        "ix_billing_links_parked",
        "billing_links",
        ["provider"],
        unique=False,
        sqlite_where=sa.text("state <> 'open'"),
        postgresql_where=sa.text("state <> 'open'"),
    )
    op.create_index(
        "uq_billing_links_customer_id",
        "billing_links",
        ["provider", "customer_id"],
        unique=True,
        sqlite_where=sa.text("customer_id IS NOT NULL"),
        postgresql_where=sa.text("customer_id IS NOT NULL"),
    )


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("lease_token", sa.String(length=36), nullable=True),
        sa.Column("lease_until", MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("name"),
    )
