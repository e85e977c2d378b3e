"""Builds and runs the API, as a process or as a part of one, with connections and threads of its own."""

from __future__ import annotations

import errno
import importlib.metadata
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from api.context import ApiContext
from api.oidc import Issuer
from api.provider_queries import QUERY_CALL_TIMEOUT_SECONDS, ProviderQueries
from api.rate_limit import ClientRateLimiter, LocalClientRateLimiter
from api.routing import PROBE_THREADS, WAIT_THREADS
from api.server import ApiServer
from api.usage import Cache, LocalCache
from core.catalog.plans import Catalog
from core.common.clock import utc_now
from core.flow_control.rate_limiter import RateLimiter
from core.flow_control.request_gate import RequestGates
from providers.lago.webhooks import HmacCheck, JwtCheck, LagoWebhookParser
from providers.stripe.webhooks import StripeWebhookParser
from worker.config.api import DEFAULT_API_PORT, ApiSettings
from worker.config.settings import Settings
from worker.shared.cache import RedisCache
from worker.shared.client_rate_limiter import RedisClientRateLimiter
from worker.shared.rate_limiter import RedisRateLimiter
from worker.wiring import catalog
from worker.wiring import runtime as wiring_runtime
from worker.wiring.database import connect

# As many as there are threads for requests (anyio's limit, and those of some routes) and for the poll of those that
# wait: no thread waits for a connection.
API_DATABASE_CONNECTIONS: Final = 40 + PROBE_THREADS + WAIT_THREADS + 1


@contextmanager
def serve(
    settings: Settings, api_settings: ApiSettings, rate_limiter: RateLimiter | None = None
) -> Iterator[ApiServer]:
    """Serve the API inside the ``with`` block: on the configured port, else on 8080, else on any free port.

    Pass the ``rate_limiter`` of the workers in this process, if it has any. Without configured providers, quotes and
    usage are unavailable.

    Raises ``CatalogError``, ``DatabaseError``, or ``OSError`` if the configured port is in use.
    """
    plans = catalog.load(settings)
    with ExitStack() as resources:
        database = connect(settings, pool_size=API_DATABASE_CONNECTIONS)
        resources.callback(database.close)
        database.ensure_schema()
        issuer = Issuer(api_settings.issuer) if api_settings.issuer else None
        provider_queries = (
            None if settings.uses_sandbox else _open_provider_queries(settings, plans, rate_limiter, resources)
        )
        context = ApiContext(
            database=database,
            catalog=plans,
            clock=utc_now,
            issuer=issuer,
            provider_queries=provider_queries,
            rate_limiter=_open_client_rate_limiter(settings, api_settings, resources),
            usage_cache=_open_usage_cache(settings, resources),
            stripe_webhooks=_stripe_webhooks(settings),
            lago_webhooks=_lago_webhooks(settings, api_settings),
            signer=wiring_runtime.open_signer(settings),
            allow_private_webhooks=settings.webhook_allow_private,
            user_limits=api_settings.user_limits,
        )
        yield resources.enter_context(_start_server(context, api_settings))


def _stripe_webhooks(settings: Settings) -> StripeWebhookParser | None:
    secrets = settings.stripe_webhook_secrets
    return StripeWebhookParser(*secrets) if secrets else None


def _lago_webhooks(settings: Settings, api_settings: ApiSettings) -> LagoWebhookParser | None:
    if api_settings.lago_webhook_public_key is not None:
        return LagoWebhookParser(JwtCheck(api_settings.lago_webhook_public_key))
    secret = settings.lago_webhook_secret
    return None if secret is None else LagoWebhookParser(HmacCheck(secret.get_secret_value()))


def _open_provider_queries(
    settings: Settings, plans: Catalog, rate_limiter: RateLimiter | None, resources: ExitStack
) -> ProviderQueries:
    """Providers with a shorter timeout than a worker's, because a user waits for the response."""
    stripe, lago = wiring_runtime.open_stripe_and_lago(settings, plans, QUERY_CALL_TIMEOUT_SECONDS)
    resources.callback(stripe.close)
    resources.callback(lago.close)
    if rate_limiter is None:
        rate_limiter = wiring_runtime.open_rate_limiter(settings)
        if isinstance(rate_limiter, RedisRateLimiter):
            resources.callback(rate_limiter.close)
    provider_queries = ProviderQueries(
        {"stripe": stripe.invoice_previewer, "lago": lago.usage_and_preview},
        lago.usage_and_preview,
        RequestGates(rate_limiter),
    )
    resources.callback(provider_queries.close)
    return provider_queries


def _open_client_rate_limiter(settings: Settings, api_settings: ApiSettings, resources: ExitStack) -> ClientRateLimiter:
    if settings.redis is None:
        return LocalClientRateLimiter(api_settings.api_rate_limit)
    shared = RedisClientRateLimiter(api_settings.api_rate_limit, settings.redis)
    resources.callback(shared.close)
    return shared


def _open_usage_cache(settings: Settings, resources: ExitStack) -> Cache:
    if settings.redis is None:
        return LocalCache(time.monotonic)
    shared = RedisCache(settings.redis, "usage")
    resources.callback(shared.close)
    return shared


def _start_server(context: ApiContext, api_settings: ApiSettings) -> ApiServer:
    try:
        return _new_server(
            context, api_settings, DEFAULT_API_PORT if api_settings.api_port is None else api_settings.api_port
        ).start()
    except OSError as error:
        if error.errno != errno.EADDRINUSE or api_settings.api_port is not None:
            raise
    return _new_server(context, api_settings, 0).start()


def _new_server(context: ApiContext, api_settings: ApiSettings, port: int) -> ApiServer:
    version = importlib.metadata.version("billing-sync")
    return ApiServer(
        context,
        api_settings.api_host,
        port,
        version=version,
        secure=api_settings.is_https,
        allowed_origins=api_settings.cors_origins,
        trusted_proxies=api_settings.proxies,
    )
