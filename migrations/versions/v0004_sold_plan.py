"""``billing_links.sold_plan`` and ``sold_price_id``: what was sold, which stays known while a write has no answer yet.

The price is stored by the next write of the subscription.
"""

import sqlalchemy as sa
from alembic import op

revision = "4"
down_revision = "3"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("billing_links", sa.Column("sold_plan", sa.String(length=255), nullable=True))
    op.add_column("billing_links", sa.Column("sold_price_id", sa.String(length=255), nullable=True))
    op.execute("UPDATE billing_links SET sold_plan = applied_plan WHERE applied_plan IS NOT NULL")
