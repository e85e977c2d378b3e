"""``webhooks_refused_since``: since when the signature of a provider's webhooks is not valid. It starts as NULL."""

import sqlalchemy as sa
from alembic import op

revision = "13"
down_revision = "12"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("provider_status", sa.Column("webhooks_refused_since", sa.DateTime(timezone=True), nullable=True))
