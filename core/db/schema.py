"""Which schema a database has, and whether this version may run on it.

A migration may say which older version may go on running on the schema that it makes (``compatible_with``). It is
stored in the database, because the older version does not have the migration.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, inspect, select, text

from core.db.models.schema import SchemaCompatibility
from core.db.problems import DatabaseProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaState:
    """``current``: ``None`` if the database is empty. ``needed``: this version's own.

    ``compatible_with``: the lowest revision whose version may run on ``current``; ``None``: only its own version.
    """

    current: str | None
    needed: str
    compatible_with: int | None

    @property
    def is_newer(self) -> bool:
        """A newer version of this program has made it."""
        return _is_ours(self.current) and int(self.current or 0) > int(self.needed)

    @property
    def is_usable(self) -> bool:
        if self.current == self.needed:
            return True
        return self.is_newer and self.compatible_with is not None and self.compatible_with <= int(self.needed)

    def problem(self, *, is_sqlite: bool) -> DatabaseProblem | None:
        if self.is_usable:
            return None
        if self.is_newer:
            return DatabaseProblem(
                code="schema_newer",
                message=f"the database has schema {self.current}, which is newer than this version's {self.needed}",
                consequence="this version must not write it",
                advice="install the newer version, `pip install --upgrade billing-sync`",
            )
        has = f"has schema {self.current}" if self.current else "is empty"
        return DatabaseProblem(
            code="schema_older",
            message=f"the database {has}, this version needs {self.needed}",
            consequence="the next command upgrades it" if is_sqlite else "no process of this version starts",
            advice="run `billing-sync db upgrade`",
        )


def read(connection: Connection, needed: str) -> SchemaState:
    tables = inspect(connection)
    current: str | None = None
    compatible_with: int | None = None
    if tables.has_table("alembic_version"):
        current = connection.scalar(text("SELECT version_num FROM alembic_version"))
    if current != needed and tables.has_table(SchemaCompatibility.__tablename__):
        compatible_with = connection.scalar(select(SchemaCompatibility.lowest_revision))
    return SchemaState(current=current, needed=needed, compatible_with=compatible_with)


def _is_ours(revision: str | None) -> bool:
    """The revisions of the predecessor begin with 0."""
    return revision is not None and revision.isdigit() and not revision.startswith("0")
