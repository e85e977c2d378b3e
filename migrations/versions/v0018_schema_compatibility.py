"""``schema_compatibility``: the lowest revision whose version may still run on this schema, for rolling deploys.

``migrations/env.py`` raises it at each later migration, to what that one says in ``compatible_with``.
"""

import sqlalchemy as sa
from alembic import op

revision = "18"
down_revision = "17"
branch_labels = None
depends_on = None


def upgrade() -> None:
    table = op.create_table("schema_compatibility", sa.Column("lowest_revision", sa.Integer(), primary_key=True))
    op.bulk_insert(table, [{"lowest_revision": 18}])
