"""Observe and adopt: an organization's mode, whose the objects of a link are, their ids in Lago, and what was observed.

Links that exist are ours, apart from an id that an import brought and that was never synced: nothing was written there.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "19"
down_revision = "18"
branch_labels = None
depends_on = None

_OBJECT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("organizations", sa.Column("management", sa.String(8), nullable=True))
    op.add_column("billing_links", sa.Column("ownership", sa.String(8), nullable=False, server_default="ours"))
    op.add_column("billing_links", sa.Column("marks", sa.String(8), nullable=False, server_default="ours"))
    for name in ("external_customer_id", "external_subscription_id"):
        op.add_column("billing_links", sa.Column(name, sa.String(255), nullable=True))
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
    op.execute(
        "UPDATE billing_links SET ownership = 'theirs' "
        "WHERE customer_id IS NOT NULL AND customer_state = 'unconfirmed' AND synced_at IS NULL"
    )
