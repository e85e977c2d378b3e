"""Runs the migrations in the transaction that ``core.db.database`` opened: all of them take effect, or none."""

import sqlalchemy as sa
from alembic import context
from alembic.operations import Operations

from core.db.base import Base
from migrations import from_0009

FIRST_REVISION = "1"

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, transactional_ddl=True)
with context.begin_transaction():
    migration_context = context.get_context()
    if migration_context.get_current_heads() == ("0009",):
        with Operations.context(migration_context):
            from_0009.convert()
        connection.execute(sa.text("UPDATE alembic_version SET version_num = :first"), {"first": FIRST_REVISION})
    context.run_migrations()
