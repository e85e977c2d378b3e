"""``link_history``, and the indexes with which the history of one organization is read."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "9"
down_revision = "8"
branch_labels = None
depends_on = None

_COUNTER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_OBJECT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "link_history",
        sa.Column("seq", _COUNTER, primary_key=True, autoincrement=True),
        sa.Column("org_id", sa.String(64), nullable=False),
        sa.Column("provider", sa.String(16), nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", _TIME, nullable=True),
        sa.Column("outcome", sa.String(12), nullable=True),
        sa.Column("actor", sa.String(255), nullable=True),
        sa.Column("source", sa.String(255), nullable=True),
        sa.Column("data", _OBJECT, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_link_history_org_id", "link_history", ["org_id", "seq"])
    op.create_index("ix_link_history_at", "link_history", ["at"])
    op.create_index("ix_service_events_org_id", "service_events", ["org_id"])
    op.create_index("ix_provider_webhooks_org_id", "provider_webhooks", ["org_id"])
    op.create_index("ix_provider_webhooks_customer_id", "provider_webhooks", ["provider", "customer_id"])
    op.create_index("ix_webhook_deliveries_event_seq", "webhook_deliveries", ["event_seq"])
    op.create_index("ix_drift_findings_org_id", "drift_findings", ["org_id"])
