"""The context of the API's requests: the database, the settings and the clients that they work with."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from api.oidc import Issuer
from api.provider_queries import ProviderQueries
from api.rate_limit import DEFAULT_CLIENT_RATE, ClientRateLimiter, LocalClientRateLimiter
from api.usage import Cache, CachedUsageReader, LocalCache
from core.access.limits import UserLimits
from core.catalog.plans import Catalog
from core.common.clock import Clock
from core.db.database import Database
from core.webhooks.signing import Signer
from providers.lago.webhooks import LagoWebhookParser
from providers.stripe.webhooks import StripeWebhookParser


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiContext:
    """What the requests of one process work with; created by the code that starts the server.

    ``issuer`` None: no sign-in service is configured, so only API keys are accepted. ``provider_queries`` None: no
    provider is configured, so quotes and usage are unavailable. ``stripe_webhooks`` or ``lago_webhooks`` None: the
    provider's secret is not set, so its webhooks are not accepted. ``signer`` None: outbound webhooks are disabled.
    ``allow_private_webhooks``: a webhook endpoint may be in a private network of ours.
    """

    database: Database
    catalog: Catalog
    clock: Clock
    issuer: Issuer | None = None
    provider_queries: ProviderQueries | None = None
    rate_limiter: ClientRateLimiter = field(default_factory=lambda: LocalClientRateLimiter(DEFAULT_CLIENT_RATE))
    usage_cache: Cache = field(default_factory=lambda: LocalCache(time.monotonic))
    stripe_webhooks: StripeWebhookParser | None = None
    lago_webhooks: LagoWebhookParser | None = None
    signer: Signer | None = None
    allow_private_webhooks: bool = False
    user_limits: UserLimits = field(default_factory=UserLimits)

    @property
    def usage_reader(self) -> CachedUsageReader:
        return CachedUsageReader(self.provider_queries, self.usage_cache, self.clock)


async def get_context(request: Request) -> ApiContext:
    """Async, so that it needs no thread."""
    context = request.app.state.context
    if not isinstance(context, ApiContext):
        message = "the app must be created by api.app.build_app"
        raise TypeError(message)
    return context


ContextDep = Annotated[ApiContext, Depends(get_context)]
