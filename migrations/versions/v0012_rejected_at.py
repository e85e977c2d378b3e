"""``service_events.rejected_at``: when a message was rejected, which may be long after it arrived."""

import sqlalchemy as sa
from alembic import op

revision = "12"
down_revision = "11"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("service_events", sa.Column("rejected_at", sa.DateTime(timezone=True), nullable=True))
    op.execute("UPDATE service_events SET rejected_at = received_at WHERE status = 'rejected'")
    op.create_index(
        "ix_service_events_rejected_at",
        "service_events",
        ["rejected_at"],
        sqlite_where=sa.text("status = 'rejected'"),
        postgresql_where=sa.text("status = 'rejected'"),
    )
