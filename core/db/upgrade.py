"""Upgrades the schema with Alembic, which is imported only for this: most processes find the schema up to date."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection


class UnknownSchemaError(Exception):
    """The database has a schema that this version neither made nor can convert."""


def to_head(connection: Connection, migrations_folder: Path) -> None:
    """In the transaction of ``connection``. Raises ``UnknownSchemaError``."""
    config = Config()
    config.set_main_option("script_location", str(migrations_folder))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise UnknownSchemaError(str(error)) from error
