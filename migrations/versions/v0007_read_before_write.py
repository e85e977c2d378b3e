"""``billing_links.payer_confirmed`` and ``maybe_older``: what must be read in Lago before it is written.

Of a link without a customer it is not known where the id came from, so the customer is read first.
"""

import sqlalchemy as sa
from alembic import op

revision = "7"
down_revision = "6"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "billing_links", sa.Column("payer_confirmed", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.add_column("billing_links", sa.Column("maybe_older", sa.Boolean(), nullable=False, server_default=sa.true()))
    # A customer that Lago confirmed as we wanted it was confirmed with its payer.
    op.execute(
        "UPDATE billing_links SET payer_confirmed = true WHERE customer_state = 'applied' AND payer_id IS NOT NULL"
    )
