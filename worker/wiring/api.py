"""The API as a process, or a part of one: its own connections, its own threads, closed in the order of their making."""

from __future__ import annotations

import errno
import importlib.metadata
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from api.context import Runtime
from api.oidc import Issuer
from api.provider_queries import CALL_SECONDS, Asking
from api.rate_limit import LocalPaces, Paces
from api.server import Server
from api.usage import LocalShelf, Shelf
from core.catalog import plans as plan_catalog
from core.catalog.plans import Catalog
from core.common.clock import utc_now
from core.db.database import Database
from core.flow_control.rate_limiter import Quota
from core.flow_control.request_gate import Gates
from providers.lago.webhooks import Hmac, Jwt, LagoWebhooks
from providers.stripe.webhooks import StripeWebhooks
from worker.config.api import PORT, ApiSettings
from worker.config.settings import Settings
from worker.shared.cache import SharedShelf
from worker.shared.client_rate_limiter import SharedPaces
from worker.shared.rate_limiter import SharedQuota
from worker.wiring import runtime as wiring_runtime

# As many as threads answer requests (anyio's limit): nobody waits for a connection while holding a thread.
CONNECTIONS: Final = 40


@contextmanager
def api(settings: Settings, own: ApiSettings, quota: Quota | None = None) -> Iterator[Server]:
    """Serving inside, stopped after. On 8080, or any free port where that is taken and none was asked for.

    ``quota``: of this process's workers, where it has some. Without billers named, what they would tell is unavailable.

    Raises ``CatalogError``, ``DatabaseError``, or OSError where the port that was asked for is taken.
    """
    plans = plan_catalog.load(settings.plans_file, settings.charged_by)
    with ExitStack() as open_things:
        database = Database(settings.database, pool_size=CONNECTIONS)
        open_things.callback(database.close)
        database.prepare()
        issuer = Issuer(own.issuer) if own.issuer else None
        if issuer is not None:
            open_things.callback(issuer.close)
        asking = None if settings.uses_sandbox else _asking(settings, plans, quota, open_things)
        runtime = Runtime(
            database=database,
            catalog=plans,
            clock=utc_now,
            issuer=issuer,
            asking=asking,
            paces=_paces(settings, own, open_things),
            shelf=_shelf(settings, open_things),
            stripe_webhooks=_stripe_webhooks(settings),
            lago_webhooks=_lago_webhooks(settings, own),
            signer=wiring_runtime.open_signer(settings),
            private_webhooks=settings.webhook_allow_private,
        )
        yield open_things.enter_context(_started(runtime, own))


def _stripe_webhooks(settings: Settings) -> StripeWebhooks | None:
    secret = settings.stripe_webhook_secret
    return None if secret is None else StripeWebhooks(secret.get_secret_value())


def _lago_webhooks(settings: Settings, own: ApiSettings) -> LagoWebhooks | None:
    if own.lago_webhook_public_key is not None:
        return LagoWebhooks(Jwt(own.lago_webhook_public_key))
    secret = settings.lago_webhook_secret
    return None if secret is None else LagoWebhooks(Hmac(secret.get_secret_value()))


def _asking(settings: Settings, plans: Catalog, quota: Quota | None, open_things: ExitStack) -> Asking:
    """Billers of its own: somebody waits for what these answer, so their calls are shorter than a worker's."""
    stripe, lago = wiring_runtime.open_both(settings, plans, CALL_SECONDS)
    open_things.callback(stripe.close)
    open_things.callback(lago.close)
    if quota is None:
        quota = wiring_runtime.open_quota(settings)
        if isinstance(quota, SharedQuota):
            open_things.callback(quota.close)
    asking = Asking({"stripe": stripe.teller, "lago": lago.teller}, lago.teller, Gates(quota))
    open_things.callback(asking.close)
    return asking


def _paces(settings: Settings, own: ApiSettings, open_things: ExitStack) -> Paces:
    if settings.redis is None:
        return LocalPaces(own.api_rate_limit)
    shared = SharedPaces(own.api_rate_limit, settings.redis)
    open_things.callback(shared.close)
    return shared


def _shelf(settings: Settings, open_things: ExitStack) -> Shelf:
    if settings.redis is None:
        return LocalShelf(time.monotonic)
    shared = SharedShelf(settings.redis, "usage")
    open_things.callback(shared.close)
    return shared


def _started(runtime: Runtime, own: ApiSettings) -> Server:
    try:
        return _server(runtime, own, PORT if own.api_port is None else own.api_port).start()
    except OSError as error:
        if error.errno != errno.EADDRINUSE or own.api_port is not None:
            raise
    return _server(runtime, own, 0).start()


def _server(runtime: Runtime, own: ApiSettings, port: int) -> Server:
    version = importlib.metadata.version("billing-sync")
    return Server(runtime, own.api_host, port, version=version, secure=own.secure, origins=own.cors_origins)
