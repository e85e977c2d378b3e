"""What somebody arranged for a subscription at a provider: a planned end, a pause, a schedule."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "3"
down_revision = "2"
branch_labels = None
depends_on = None

_OBJECT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("billing_links", sa.Column("arrangement", _OBJECT, nullable=True))
