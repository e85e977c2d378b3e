"""The API with both billers of the sandbox to ask, and the worker's side of them: names that test modules take over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from api.provider_queries import ProviderQueries
from core.catalog.plans import Catalog
from core.db.database import Database
from providers.lago.provider import LagoProvider
from providers.stripe.provider import StripeProvider
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tests.core.fakes import PAYMENT_PROVIDER_CODE, World, open_world


@pytest.fixture
def world(database: Database, sandbox: SandboxClient, plans: Catalog, sandbox_server: Sandbox) -> Iterator[World]:
    """The worker's side."""
    opened = open_world(database, sandbox, plans, sandbox_server.url)
    yield opened
    for biller in opened.providers.values():
        biller.close()


@pytest.fixture
def asking(sandbox_server: Sandbox, plans: Catalog) -> Iterator[ProviderQueries]:
    stripe = StripeProvider("sk_test_sandbox", sandbox_server.url, ending=plans.ending, timeout=2.0)
    lago = LagoProvider(
        sandbox_server.url, "sandbox", payment_provider_code=PAYMENT_PROVIDER_CODE, ending=plans.ending, timeout=2.0
    )
    asked = ProviderQueries(
        {"stripe": stripe.invoice_previewer, "lago": lago.usage_and_preview}, lago.usage_and_preview
    )
    yield asked
    asked.close()
    stripe.close()
    lago.close()
