"""When a link was created: if its first create comes long after, a restored database may have lost an earlier one."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("billing_links", sa.Column("made_at", sa.DateTime(timezone=True), nullable=True))
