"""What the requests of one process work with; put together by whoever starts the server."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from api.asking import Asking
from api.issuer import Issuer
from api.pacing import DEFAULT_RATE, LocalPaces, Paces
from api.usage import LocalShelf, Shelf, UsageReader
from core.catalog import Catalog
from core.clock import Clock
from core.database import Database
from providers.lago_webhooks import LagoWebhooks
from providers.stripe_webhooks import StripeWebhooks


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """``issuer`` None: no sign-in service is named, so only keys of services are let in.

    ``asking`` None: no biller is named, so what they would tell is unavailable. Webhooks are taken of a biller whose
    secret is set.
    """

    database: Database
    catalog: Catalog
    clock: Clock
    issuer: Issuer | None = None
    asking: Asking | None = None
    shelf: Shelf = field(default_factory=lambda: LocalShelf(time.monotonic))
    stripe_webhooks: StripeWebhooks | None = None
    lago_webhooks: LagoWebhooks | None = None
    paces: Paces = field(default_factory=lambda: LocalPaces(DEFAULT_RATE))

    @property
    def usage(self) -> UsageReader:
        return UsageReader(self.asking, self.shelf, self.clock)


def runtime_of(request: Request) -> Runtime:
    runtime = request.app.state.runtime
    if not isinstance(runtime, Runtime):
        message = "the app is made by api.application.build"
        raise TypeError(message)
    return runtime


TheRuntime = Annotated[Runtime, Depends(runtime_of)]
