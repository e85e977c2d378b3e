"""The payment brake: changes of what organizations pay, and those that an operator expected."""

import sqlalchemy as sa
from alembic import op

revision = "20"
down_revision = "19"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)
_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "payment_changes",
        sa.Column("seq", _NUMBER, nullable=False),
        sa.Column("org_id", sa.String(64), nullable=False),
        sa.Column("scope", sa.String(8), nullable=False),
        sa.Column("goal", sa.String(64), nullable=False),
        sa.Column("place", sa.String(12), nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("seq"),
    )
    op.create_index("ix_payment_changes_org_id", "payment_changes", ["org_id", "scope", "seq"])
    op.create_index("ix_payment_changes_at", "payment_changes", ["at"])
    op.create_table(
        "expected_payment_changes",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("changes", sa.Integer(), nullable=False),
        sa.Column("used", sa.Integer(), nullable=False),
        sa.Column("until", _MOMENT, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(255), nullable=True),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
