"""Moves of organizations to another price of their plan."""

import sqlalchemy as sa
from alembic import op

revision = "22"
down_revision = "21"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)
_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_IS_OPEN = sa.text("ended_at IS NULL")


def upgrade() -> None:
    op.create_table(
        "price_moves",
        sa.Column("seq", _NUMBER, nullable=False),
        sa.Column("org_id", sa.String(64), nullable=False),
        sa.Column("provider", sa.String(16), nullable=False),
        sa.Column("tier", sa.String(255), nullable=False),
        sa.Column("from_code", sa.String(255), nullable=False),
        sa.Column("to_code", sa.String(255), nullable=False),
        sa.Column("amount_before", sa.BigInteger(), nullable=False),
        sa.Column("amount_after", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.String(3), nullable=False),
        sa.Column("interval", sa.String(16), nullable=False),
        sa.Column("at_period_end", sa.Boolean(), nullable=False),
        sa.Column("listed_for", _MOMENT, nullable=False),
        sa.Column("effective_at", _MOMENT, nullable=False),
        sa.Column("notice_days", sa.Integer(), nullable=False),
        sa.Column("is_expected", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(12), nullable=False),
        sa.Column("due_at", _MOMENT, nullable=False),
        sa.Column("noticed_at", _MOMENT, nullable=True),
        sa.Column("started_at", _MOMENT, nullable=True),
        sa.Column("ended_at", _MOMENT, nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("actor", sa.String(255), nullable=True),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("seq"),
    )
    op.create_index(
        "uq_price_moves_open",
        "price_moves",
        ["org_id"],
        unique=True,
        sqlite_where=_IS_OPEN,
        postgresql_where=_IS_OPEN,
    )
    op.create_index("ix_price_moves_due", "price_moves", ["due_at"], sqlite_where=_IS_OPEN, postgresql_where=_IS_OPEN)
    op.create_index("ix_price_moves_org_id", "price_moves", ["org_id", "seq"])
