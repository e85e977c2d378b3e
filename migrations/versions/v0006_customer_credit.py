"""What a customer has as credit on its balance in Stripe, and an index of the links whose credit no invoice will use.

It is read by the next attempt or drift check.
"""

import sqlalchemy as sa
from alembic import op

revision = "6"
down_revision = "5"
branch_labels = None
depends_on = None

HAS_CREDIT_LEFT = sa.text("credit_amount > 0 AND subscription_id IS NULL")


def upgrade() -> None:
    op.add_column("billing_links", sa.Column("credit_amount", sa.BigInteger(), nullable=True))
    op.add_column("billing_links", sa.Column("credit_currency", sa.String(length=3), nullable=True))
    op.add_column("billing_links", sa.Column("credit_since", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "ix_billing_links_credit",
        "billing_links",
        ["provider"],
        sqlite_where=HAS_CREDIT_LEFT,
        postgresql_where=HAS_CREDIT_LEFT,
    )
