"""Fixtures shared by the tests of the import."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.catalog.plans import Catalog
from core.common.clock import Clock
from core.db.database import Database
from tests.support.importer import Importer


@pytest.fixture
def importer(database: Database, plans: Catalog, clock: Clock, tmp_path: Path) -> Importer:
    return Importer(database, plans, clock, tmp_path)
