"""Invitations to users, what the limits of one user count, first sign-ins, and who chose a membership.

The limits start to count anew. Every user that exists counts as signed in, and every membership as chosen.
"""

import sqlalchemy as sa
from alembic import op

revision = "16"
down_revision = "15"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE invitations RENAME COLUMN email_key TO recipient_key")
    op.add_column("invitations", sa.Column("user_id", sa.String(255), nullable=True))
    op.add_column("users", sa.Column("signed_in_at", sa.DateTime(timezone=True), nullable=True))
    op.execute("UPDATE users SET signed_in_at = first_seen_at")
    op.add_column("memberships", sa.Column("is_chosen", sa.Boolean(), nullable=False, server_default=sa.true()))
    is_pending = sa.text("state = 'pending'")
    op.create_index(
        "ix_invitations_recipient_key",
        "invitations",
        ["recipient_key"],
        sqlite_where=is_pending,
        postgresql_where=is_pending,
    )
    counter = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "sent_invitations",
        sa.Column("id", counter, primary_key=True, autoincrement=True),
        sa.Column("org_id", sa.String(64), nullable=False),
        sa.Column("recipient_key", sa.String(1024), nullable=False),
        sa.Column("invited_by", sa.String(255), nullable=True),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=False),
    )
    for column in ("org_id", "recipient_key", "invited_by"):
        op.create_index(f"ix_sent_invitations_{column}", "sent_invitations", [column, "sent_at"])
    op.create_index("ix_sent_invitations_sent_at", "sent_invitations", ["sent_at"])
    is_creation = sa.text("type = 'organization.created'")
    op.create_index(
        "ix_events_created_by",
        "events",
        ["actor", "occurred_at"],
        sqlite_where=is_creation,
        postgresql_where=is_creation,
    )
