"""When to read the provider for a scheduled downgrade is its own time, which may come before the plan's day."""

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"
branch_labels = None
depends_on = None

IS_PENDING = "pending_plan_tier IS NOT NULL"


def upgrade() -> None:
    op.drop_index("ix_organizations_plan_effective_at", table_name="organizations")
    op.execute(
        # At once: the day that was stored may be a period too late.
        "UPDATE organizations SET downgrade_recheck_at = updated_at "
        "WHERE pending_plan_tier IS NOT NULL AND plan_effective_at IS NOT NULL AND downgrade_recheck_at IS NULL"
    )
    op.create_index(
        "ix_organizations_downgrade_recheck_at",
        "organizations",
        ["downgrade_recheck_at"],
        sqlite_where=sa.text(IS_PENDING),
        postgresql_where=sa.text(IS_PENDING),
    )
