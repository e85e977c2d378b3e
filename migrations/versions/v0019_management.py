"""Observe and adopt: an organization's mode, whose the objects of a link are, their ids in Lago, and what was observed.

Links that exist are ours, apart from an id that came from outside and whose customer we never wrote. Each customer that
we wrote has the account's id beside it; an import stores none, and a new id clears it.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "19"
down_revision = "18"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)
_OBJECT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("organizations", sa.Column("management", sa.String(8), nullable=True))
    op.add_column("billing_links", sa.Column("ownership", sa.String(8), nullable=False, server_default="ours"))
    op.add_column("billing_links", sa.Column("marks", sa.String(8), nullable=False, server_default="ours"))
    for name in ("external_customer_id", "external_subscription_id"):
        op.add_column("billing_links", sa.Column(name, sa.String(255), nullable=True))
    op.add_column("billing_links", sa.Column("adopted_fingerprint", sa.String(64), nullable=True))
    op.add_column("billing_links", sa.Column("without_payer", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("billing_links", sa.Column("observation", _OBJECT, nullable=True))
    op.add_column("billing_links", sa.Column("observed_at", sa.DateTime(timezone=True), nullable=True))
    for name in ("external_customer_id", "external_subscription_id"):
        condition = sa.text(f"{name} IS NOT NULL")
        op.create_index(
            f"uq_billing_links_{name}",
            "billing_links",
            ["provider", name],
            unique=True,
            sqlite_where=condition,
            postgresql_where=condition,
        )
    # Observed links are read as well, also without a subscription.
    op.drop_index("ix_billing_links_routine_check", "billing_links")
    routine = sa.text("((state = 'active' AND subscription_id IS NOT NULL) OR state = 'observed')")
    op.create_index(
        "ix_billing_links_routine_check",
        "billing_links",
        ["provider", "routine_check_at"],
        sqlite_where=routine,
        postgresql_where=routine,
    )
    observed = sa.text("state = 'observed'")
    op.create_index(
        "ix_billing_links_observed", "billing_links", ["org_id"], sqlite_where=observed, postgresql_where=observed
    )
    op.execute(
        "UPDATE billing_links SET ownership = 'theirs' "
        "WHERE customer_id IS NOT NULL AND customer_state = 'unconfirmed' AND account_id IS NULL"
    )
    _create_discovery_tables()


def _create_discovery_tables() -> None:
    op.create_table(
        "discoveries",
        sa.Column("run_id", sa.String(36), nullable=False),
        sa.Column("lease_token", sa.String(36), nullable=False),
        sa.Column("stage", sa.String(32), nullable=False),
        sa.Column("cursor", sa.String(255), nullable=True),
        sa.Column("processed", sa.Integer(), nullable=False),
        sa.Column("managed", sa.Integer(), nullable=False),
        sa.Column("started_at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("run_id"),
    )
    op.create_table(
        "discovery_listings",
        sa.Column("run_id", sa.String(36), nullable=False),
        sa.Column("provider", sa.String(16), nullable=False),
        sa.Column("object_type", sa.String(16), nullable=False),
        sa.Column("id", sa.String(255), nullable=False),
        sa.Column("external_id", sa.String(255), nullable=True),
        sa.Column("customer_id", sa.String(255), nullable=True),
        sa.Column("org_id", sa.String(64), nullable=True),
        sa.Column("payer_id", sa.String(255), nullable=True),
        sa.Column("name_key", sa.String(1000), nullable=True),
        sa.Column("email_key", sa.String(1024), nullable=True),
        sa.Column("is_matched", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("observed", _OBJECT, nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["discoveries.run_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "provider", "object_type", "id"),
    )
    for name, columns in (
        ("matched", ["object_type", "is_matched", "provider", "id"]),
        ("customer_id", ["provider", "object_type", "customer_id"]),
        *((name, [name]) for name in ("external_id", "org_id", "payer_id", "name_key", "email_key")),
    ):
        op.create_index(f"ix_discovery_listings_{name}", "discovery_listings", ["run_id", *columns])
    op.create_table(
        "discovery_proposals",
        sa.Column("run_id", sa.String(36), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("org_id", sa.String(64), nullable=True),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("body", _OBJECT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["discoveries.run_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "seq"),
    )
    op.create_index("ix_discovery_proposals_org_id", "discovery_proposals", ["run_id", "org_id"])
    op.create_index("ix_discovery_proposals_action", "discovery_proposals", ["run_id", "action", "seq"])
