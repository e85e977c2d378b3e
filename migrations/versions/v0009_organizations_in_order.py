"""The index for listing all organizations page by page, in the order of their creation, at any size."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_organizations_created_at", "organizations", ["created_at", "id"])
