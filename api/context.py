"""What the requests of one process work with; put together by whoever starts the server."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from api.oidc import Issuer
from api.provider_queries import Asking
from api.rate_limit import DEFAULT_RATE, LocalPaces, Paces
from api.usage import LocalShelf, Shelf, UsageReader
from core.catalog.plans import Catalog
from core.common.clock import Clock
from core.db.database import Database
from core.webhooks.signing import Signer
from providers.lago.webhooks import LagoWebhooks
from providers.stripe.webhooks import StripeWebhooks


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """``issuer`` None: no sign-in service is named, so only keys of services are let in.

    ``signer`` None: nobody is told by webhook; ``private_webhooks``: who is told may be on a network of our own.

    ``asking`` None: no biller is named, so what they would tell is unavailable. Webhooks are taken of a biller whose
    secret is set.
    """

    database: Database
    catalog: Catalog
    clock: Clock
    issuer: Issuer | None = None
    asking: Asking | None = None
    paces: Paces = field(default_factory=lambda: LocalPaces(DEFAULT_RATE))
    shelf: Shelf = field(default_factory=lambda: LocalShelf(time.monotonic))
    stripe_webhooks: StripeWebhooks | None = None
    lago_webhooks: LagoWebhooks | None = None
    signer: Signer | None = None
    private_webhooks: bool = False

    @property
    def usage(self) -> UsageReader:
        return UsageReader(self.asking, self.shelf, self.clock)


def runtime_of(request: Request) -> Runtime:
    runtime = request.app.state.runtime
    if not isinstance(runtime, Runtime):
        message = "the app is made by api.app.build"
        raise TypeError(message)
    return runtime


TheRuntime = Annotated[Runtime, Depends(runtime_of)]
