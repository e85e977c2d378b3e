"""Connects to the configured database. Every process and command of ``worker`` does it here, by the same settings."""

from __future__ import annotations

from core.db.database import DEFAULT_POOL_SIZE, Database
from worker.config.settings import Settings


def connect(settings: Settings, *, pool_size: int = DEFAULT_POOL_SIZE) -> Database:
    return Database(settings.database, pool_size=pool_size, unique_names=settings.unique_organization_names)
