"""``billing_links.subscription_requested``: before it is true, a subscription that is found in Lago is not ours.

Of a link whose customer we wrote already it is not known, so one that is found may be ours.
"""

import sqlalchemy as sa
from alembic import op

revision = "8"
down_revision = "7"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "billing_links", sa.Column("subscription_requested", sa.Boolean(), nullable=False, server_default=sa.true())
    )
    op.execute(
        "UPDATE billing_links SET subscription_requested = false WHERE customer_state IN ('absent', 'unconfirmed')"
    )
