"""Runs the migrations inside the transaction that ``core.db.database`` hands over: all of a version, or nothing."""

from alembic import context

from core.db.base import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
