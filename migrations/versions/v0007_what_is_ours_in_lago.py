"""``billing_links.payer_confirmed``, ``maybe_older`` and ``replaced_next_plans``: what is ours in Lago.

Of a link without a customer it is not known where the id came from, so the customer is read first.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "7"
down_revision = "6"
branch_labels = None
depends_on = None

_LIST = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column(
        "billing_links", sa.Column("payer_confirmed", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.add_column("billing_links", sa.Column("maybe_older", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.add_column("billing_links", sa.Column("replaced_next_plans", _LIST, nullable=True))
    # A customer that Lago confirmed as we wanted it was confirmed with its payer.
    op.execute(
        "UPDATE billing_links SET payer_confirmed = true WHERE customer_state = 'applied' AND payer_id IS NOT NULL"
    )
