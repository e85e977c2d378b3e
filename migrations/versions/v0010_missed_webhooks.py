"""Until when Stripe's events were read, and when a remote check of a link in Lago was last requested in turn."""

import sqlalchemy as sa
from alembic import op

revision = "10"
down_revision = "9"
branch_labels = None
depends_on = None

_HAS_ROUTINE_CHECKS = sa.text("state = 'active' AND subscription_id IS NOT NULL")


def upgrade() -> None:
    op.add_column("provider_status", sa.Column("events_read_until", sa.DateTime(timezone=True), nullable=True))
    op.add_column("billing_links", sa.Column("routine_check_at", sa.DateTime(timezone=True), nullable=True))
    # Not at once: there may be a million, and each is read at its provider.
    op.execute("UPDATE billing_links SET routine_check_at = CURRENT_TIMESTAMP")
    op.create_index(
        "ix_billing_links_routine_check",
        "billing_links",
        ["provider", "routine_check_at"],
        sqlite_where=_HAS_ROUTINE_CHECKS,
        postgresql_where=_HAS_ROUTINE_CHECKS,
    )
