"""Until when an operator has dealt with lost disputes, and an index of the links with a payment problem."""

import sqlalchemy as sa
from alembic import op

revision = "5"
down_revision = "4"
branch_labels = None
depends_on = None

HAS_PAYMENT_PROBLEM = sa.text("payment_status IS NOT NULL")


def upgrade() -> None:
    op.add_column("billing_links", sa.Column("disputes_closed_until", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "ix_billing_links_payment",
        "billing_links",
        ["provider", "payment_status"],
        sqlite_where=HAS_PAYMENT_PROBLEM,
        postgresql_where=HAS_PAYMENT_PROBLEM,
    )
