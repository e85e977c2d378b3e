"""Provider webhooks, each stored once; for each link, the requested remote checks and a payment problem."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
IS_STORED = sa.text("state = 'stored'")
HAS_WORK = sa.text("state = 'open' AND (applied_version < wanted_version OR intent IS NOT NULL OR looked < hinted)")


def upgrade() -> None:
    op.create_table(
        "hints",
        sa.Column("provider", sa.String(length=16), nullable=False),
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("type", sa.String(length=255), nullable=False),
        sa.Column("concern", sa.String(length=16), nullable=True),
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
    op.create_index("ix_hints_stored", "hints", ["due_at"], sqlite_where=IS_STORED, postgresql_where=IS_STORED)
    op.create_index("ix_hints_received_at", "hints", ["received_at"])
    op.add_column("billing_links", sa.Column("hinted", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("billing_links", sa.Column("looked", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("billing_links", sa.Column("payment", sa.String(length=16), nullable=True))
    op.add_column("billing_links", sa.Column("payment_since", MOMENT, nullable=True))
    op.add_column("billing_links", sa.Column("payment_code", sa.String(length=255), nullable=True))
    op.drop_index("ix_billing_links_due", table_name="billing_links")
    op.create_index(
        "ix_billing_links_due",
        "billing_links",
        ["provider", "sweep_at"],
        sqlite_where=HAS_WORK,
        postgresql_where=HAS_WORK,
    )
