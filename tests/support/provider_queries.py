"""Provider queries of the API to both providers of the sandbox."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from api.provider_queries import QUERY_CALL_TIMEOUT_SECONDS, ProviderQueries
from core.catalog.plans import Catalog
from providers.lago.provider import LagoProvider
from providers.stripe.provider import StripeProvider
from sandbox.server import Sandbox
from tests.support.sync_world import PAYMENT_PROVIDER_CODE


@contextmanager
def open_provider_queries(sandbox_server: Sandbox, plans: Catalog) -> Iterator[ProviderQueries]:
    stripe = StripeProvider(
        "sk_test_sandbox", sandbox_server.url, ending=plans.ending, timeout=QUERY_CALL_TIMEOUT_SECONDS
    )
    lago = LagoProvider(
        sandbox_server.url,
        "sandbox",
        payment_provider_code=PAYMENT_PROVIDER_CODE,
        ending=plans.ending,
        timeout=QUERY_CALL_TIMEOUT_SECONDS,
    )
    asked = ProviderQueries(
        {"stripe": stripe.invoice_previewer, "lago": lago.usage_and_preview}, lago.usage_and_preview
    )
    yield asked
    asked.close()
    stripe.close()
    lago.close()
