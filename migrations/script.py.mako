"""${message}."""

from alembic import op
import sqlalchemy as sa

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None
# compatible_with = "N"  # only if a version from revision N on may go on running on this schema


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}
