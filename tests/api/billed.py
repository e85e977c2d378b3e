"""The API with both billers of the sandbox to ask, and the worker's side of them: names that test modules take over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from api.provider_queries import Asking
from core.catalog.plans import Catalog
from core.db.database import Database
from providers.lago.provider import LagoBiller
from providers.stripe.provider import StripeBiller
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tests.core.fakes import PAYER_CODE, World, open_world


@pytest.fixture
def world(database: Database, sandbox: SandboxClient, plans: Catalog, sandbox_server: Sandbox) -> Iterator[World]:
    """The worker's side."""
    opened = open_world(database, sandbox, plans, sandbox_server.url)
    yield opened
    for biller in opened.billers.values():
        biller.close()


@pytest.fixture
def asking(sandbox_server: Sandbox, plans: Catalog) -> Iterator[Asking]:
    stripe = StripeBiller("sk_test_sandbox", sandbox_server.url, ending=plans.ending, timeout=2.0)
    lago = LagoBiller(sandbox_server.url, "sandbox", payment_provider_code=PAYER_CODE, ending=plans.ending, timeout=2.0)
    asked = Asking({"stripe": stripe.teller, "lago": lago.teller}, lago.teller)
    yield asked
    asked.close()
    stripe.close()
    lago.close()
