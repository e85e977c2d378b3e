"""What the requests of one process work with; put together by whoever starts the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from api.asking import Asking
from api.issuer import Issuer
from core.catalog import Catalog
from core.clock import Clock
from core.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """``issuer`` None: no sign-in service is named, so only keys of services are let in.

    ``asking`` None: no biller is named, so what they would tell is unavailable.
    """

    database: Database
    catalog: Catalog
    clock: Clock
    issuer: Issuer | None = None
    asking: Asking | None = None


def runtime_of(request: Request) -> Runtime:
    runtime = request.app.state.runtime
    if not isinstance(runtime, Runtime):
        message = "the app is made by api.application.build"
        raise TypeError(message)
    return runtime


TheRuntime = Annotated[Runtime, Depends(runtime_of)]
