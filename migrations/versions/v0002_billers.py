"""One row per provider: its pinned account and its circuit breaker."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    billers = op.create_table(
        "billers",
        sa.Column("provider", sa.String(length=16), nullable=False),
        sa.Column("account_id", sa.String(length=255), nullable=True),
        sa.Column("livemode", sa.Boolean(), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("stop_kind", sa.String(length=16), nullable=True),
        sa.Column("stop_message", sa.Text(), nullable=True),
        sa.Column("stopped_since", MOMENT, nullable=True),
        sa.Column("probe_at", MOMENT, nullable=True),
        sa.Column("updated_at", MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("provider"),
    )
    op.bulk_insert(billers, [{"provider": provider, "failures": 0} for provider in ("stripe", "lago")])
