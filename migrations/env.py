"""Runs the migrations in the transaction that ``core.db.database`` opened: all of them take effect, or none."""

from alembic import context

from core.db.base import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
