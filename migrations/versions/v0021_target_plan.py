"""``billing_links.target_plan``: the provider's code to which an operator moves the link within its plan, and when."""

import sqlalchemy as sa
from alembic import op

revision = "21"
down_revision = "20"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("billing_links", sa.Column("target_plan", sa.String(255), nullable=True))
    op.add_column(
        "billing_links", sa.Column("target_at_period_end", sa.Boolean(), nullable=False, server_default=sa.false())
    )
