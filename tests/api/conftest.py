"""The API as a server on loopback, with each database, and with an OIDC provider for the tests."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from api.context import ApiContext
from api.issuer_client import IssuerSettings
from api.oidc import Issuer
from api.provider_queries import ProviderQueries
from api.rate_limit import ClientRateLimiter, LocalClientRateLimiter
from api.server import ApiServer
from core.catalog.plans import Catalog
from core.common.clock import utc_now
from core.db.database import Database
from core.webhooks.signing import Signer
from providers.lago.webhooks import LagoWebhookParser
from providers.stripe.webhooks import StripeWebhookParser
from tests.support.api_client import OWN_ORIGIN, SIGNING_SECRET, Api
from tests.support.oidc_provider import AUDIENCE, CLIENT_ID, CLIENT_SECRET, OidcProvider


@pytest.fixture(scope="session")
def oidc_provider_server() -> Iterator[OidcProvider]:
    with OidcProvider() as running:
        yield running


@pytest.fixture
def oidc_provider(oidc_provider_server: OidcProvider) -> OidcProvider:
    """The provider in its initial state: it is available, and Alice is at its page."""
    oidc_provider_server.reset()
    oidc_provider_server.nonce_is = None
    oidc_provider_server.signs_in = {"sub": "alice", "name": "Alice"}
    oidc_provider_server.asked.clear()
    return oidc_provider_server


@pytest.fixture
def issuer(oidc_provider: OidcProvider) -> Issuer:
    settings = IssuerSettings(
        issuer=oidc_provider.issuer,
        audience=AUDIENCE,
        client_id=CLIENT_ID,
        client_secret=SecretStr(CLIENT_SECRET),
        public_url=OWN_ORIGIN,
    )
    return Issuer(settings)


@pytest.fixture
def provider_queries() -> ProviderQueries | None:
    """No provider is configured, unless a test's own fixture does so."""
    return None


@pytest.fixture
def rate_limiter() -> ClientRateLimiter:
    """No limit that a test can reach, unless its own fixture sets one."""
    return LocalClientRateLimiter(1_000_000)


@pytest.fixture
def origins() -> list[str]:
    return []


@pytest.fixture
def stripe_webhooks() -> StripeWebhookParser | None:
    """Webhooks of Stripe are not enabled, unless a test's own fixture does so."""
    return None


@pytest.fixture
def lago_webhooks() -> LagoWebhookParser | None:
    return None


@pytest.fixture
def api(  # noqa: PLR0913, PLR0917 - the parts that a test may replace
    database: Database,
    plans: Catalog,
    oidc_provider: OidcProvider,
    issuer: Issuer,
    provider_queries: ProviderQueries | None,
    rate_limiter: ClientRateLimiter,
    origins: list[str],
    stripe_webhooks: StripeWebhookParser | None,
    lago_webhooks: LagoWebhookParser | None,
) -> Iterator[Api]:
    runtime = ApiContext(
        database=database,
        catalog=plans,
        clock=utc_now,
        issuer=issuer,
        provider_queries=provider_queries,
        rate_limiter=rate_limiter,
        signer=Signer(SIGNING_SECRET),
        allow_private_webhooks=True,
        stripe_webhooks=stripe_webhooks,
        lago_webhooks=lago_webhooks,
    )
    with (
        capture_logs() as log,
        ApiServer(runtime, "127.0.0.1", 0, version="test", allowed_origins=origins) as server,
        httpx.Client(base_url=server.url, trust_env=False, timeout=60) as http,
    ):
        yield Api(server.url, database, plans, oidc_provider, issuer, http, log)
