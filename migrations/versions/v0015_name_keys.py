"""``organizations.name_key`` follows Unicode's rule of what is the same, and ``may_share_name`` says who shares a name.

No name is changed. Two names that were different may be the same by the new rule, for example with a zero width space
in one of them. Then the oldest organization keeps the name for itself, and the others get ``may_share_name``: all of
them go on. An import had given such an organization a key that no name has; it gets the key of its name.
"""

from collections.abc import Iterator

import sqlalchemy as sa
from alembic import op

from core.common.names import name_key

revision = "15"
down_revision = "14"
branch_labels = None
depends_on = None

KEYS_PER_BATCH = 1000
ORGANIZATIONS = sa.table("organizations", sa.column("id"), sa.column("name"), sa.column("name_key"))
SHARE = """
    UPDATE organizations SET may_share_name = true
    WHERE status <> 'deleted'
        AND name_key IN (
            SELECT name_key FROM organizations WHERE status <> 'deleted' GROUP BY name_key HAVING count(*) > 1)
        AND EXISTS (
            SELECT 1 FROM organizations AS older
            WHERE older.name_key = organizations.name_key AND older.status <> 'deleted'
                AND (older.created_at, older.id) < (organizations.created_at, organizations.id))
"""


def upgrade() -> None:
    op.add_column("organizations", sa.Column("may_share_name", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.drop_index("uq_organizations_name_key", table_name="organizations")
    connection = op.get_bind()
    change = ORGANIZATIONS.update().where(ORGANIZATIONS.c.id == sa.bindparam("org_id"))
    for changed in _changed_keys(connection):
        connection.execute(change.values(name_key=sa.bindparam("new_key")), changed)
    op.create_index("ix_organizations_name_key", "organizations", ["name_key"])
    op.execute(SHARE)
    alone = sa.text("status <> 'deleted' AND NOT may_share_name")
    op.create_index(
        "uq_organizations_name_key",
        "organizations",
        ["name_key"],
        unique=True,
        sqlite_where=alone,
        postgresql_where=alone,
    )


def _changed_keys(connection: sa.Connection) -> Iterator[list[dict[str, str]]]:
    """The ids and new keys of each batch in which a key differs."""
    page = sa.select(*ORGANIZATIONS.c).order_by(ORGANIZATIONS.c.id).limit(KEYS_PER_BATCH)
    last_id = ""
    while rows := connection.execute(page.where(ORGANIZATIONS.c.id > last_id)).all():
        last_id = rows[-1].id
        keys = [(row.id, row.name_key, name_key(row.name)) for row in rows]
        if changed := [{"org_id": org_id, "new_key": new} for org_id, old, new in keys if old != new]:
            yield changed
