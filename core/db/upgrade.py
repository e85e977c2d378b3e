"""Upgrades the schema with Alembic, which is imported only for this: most processes find the schema up to date."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection


def to_head(connection: Connection, migrations_folder: Path) -> None:
    """In the transaction of ``connection``."""
    config = Config()
    config.set_main_option("script_location", str(migrations_folder))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
