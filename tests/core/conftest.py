"""Fixtures of the core's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from core.catalog.plans import Catalog
from core.db.database import Database
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tests.core.fakes import World, open_world


@pytest.fixture
def world(database: Database, sandbox: SandboxClient, plans: Catalog, sandbox_server: Sandbox) -> Iterator[World]:
    """An empty database beside two empty billers that sell every plan."""
    opened = open_world(database, sandbox, plans, sandbox_server.url)
    yield opened
    for biller in opened.providers.values():
        biller.close()
