"""Runs the migrations in the transaction that ``core.db.database`` opened: all of them take effect, or none.

A migration after revision 18 may say ``compatible_with = "N"``: versions of this program from revision N on may go on
running on the schema that it makes. Without it no older version may. The highest of all is stored for them.
"""

import sqlalchemy as sa
from alembic import context
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext, MigrationInfo
from alembic.script.base import Script

from core.db.base import Base
from migrations import from_0009

FIRST_REVISION = "1"
# Its own migration makes the table.
FIRST_WITH_COMPATIBILITY = 18


def note_compatibility(ctx: MigrationContext, step: MigrationInfo, *_: object, **__: object) -> None:
    """After each migration."""
    revision = step.up_revision
    if ctx.connection is None or not isinstance(revision, Script):
        return
    if int(revision.revision) <= FIRST_WITH_COMPATIBILITY:
        return
    lowest = int(getattr(revision.module, "compatible_with", revision.revision))
    statement = "UPDATE schema_compatibility SET lowest_revision = :lowest WHERE lowest_revision < :lowest"
    ctx.connection.execute(sa.text(statement), {"lowest": lowest})


connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    transactional_ddl=True,
    on_version_apply=note_compatibility,
)
with context.begin_transaction():
    migration_context = context.get_context()
    if migration_context.get_current_heads() == ("0009",):
        with Operations.context(migration_context):
            from_0009.convert()
        connection.execute(sa.text("UPDATE alembic_version SET version_num = :first"), {"first": FIRST_REVISION})
    context.run_migrations()
