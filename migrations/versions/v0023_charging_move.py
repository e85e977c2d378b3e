"""``billing_links.charging_move``: an operator said that this provider is to charge no more, and how far that is."""

import sqlalchemy as sa
from alembic import op

revision = "23"
down_revision = "22"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("billing_links", sa.Column("charging_move", sa.String(8), nullable=True))
    op.add_column("billing_links", sa.Column("charging_move_at", sa.DateTime(timezone=True), nullable=True))
