"""One Alembic history for SQLite and Postgres."""
