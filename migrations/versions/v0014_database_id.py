"""``database_id``: what tells the objects of this database from another deployment's. It is made once, here."""

from uuid import uuid4

import sqlalchemy as sa
from alembic import op

revision = "14"
down_revision = "13"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("provider_status", sa.Column("database_id", sa.String(36), nullable=False, server_default=""))
    op.execute(sa.text("UPDATE provider_status SET database_id = :id").bindparams(id=str(uuid4())))
