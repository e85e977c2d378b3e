"""Usage of the current period as Lago measures it, cached for a short time.

A cached value is up to ``USAGE_CACHE_SECONDS`` old. That Lago did not respond is cached too, for
``UNAVAILABLE_CACHE_SECONDS``, so that repeated requests wait only once while Lago is down.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from typing import Final, Literal, Protocol

from pydantic import BaseModel, Field, ValidationError

from api.provider_queries import ProviderQueries, QueryFailure
from core.common.clock import Clock
from core.ports.external_ids import ExternalIds
from core.ports.quotes import Usage as ProviderUsage
from core.ports.quotes import UsageLine

USAGE_CACHE_SECONDS: Final = 45.0  # seconds
UNAVAILABLE_CACHE_SECONDS: Final = 5.0  # seconds
MAX_CACHED_USAGES: Final = 10_000

_LAGO_UNAVAILABLE: Final = "Lago, which measures usage, cannot be reached now."
_NO_SUBSCRIPTION: Final = "The organization has no Lago subscription yet."


class UsageMetric(BaseModel):
    """``units`` is a decimal; ``amount`` is in the minor unit of the usage's currency."""

    code: str = Field(examples=["api_calls"])
    name: str
    units: str = Field(examples=["12.0"])
    amount: int = Field(examples=[1200])


class UsageResponse(BaseModel):
    """``unavailable``: Lago does not respond. ``none``: there is no subscription.

    ``amount`` is the usage not yet billed, in minor units, without the plan's price; null: unknown.
    """

    state: Literal["known", "none", "unavailable"]
    since: datetime | None = None
    until: datetime | None = None
    currency: str | None = Field(default=None, examples=["USD"])
    amount: int | None = Field(default=None, examples=[1200])
    metrics: list[UsageMetric] = Field(default_factory=list)
    as_of: datetime
    reason: str | None = None


class Cache(Protocol):
    """Stores a text for some seconds, or loses it earlier. Never raises an error."""

    def get(self, key: str, /) -> str | None: ...

    def put(self, key: str, value: str, ttl_seconds: float, /) -> None: ...


class LocalCache:
    """Of one process. When it is full, the oldest entry is dropped."""

    def __init__(self, monotonic: Callable[[], float], max_entries: int = MAX_CACHED_USAGES) -> None:
        self._monotonic, self._max_entries = monotonic, max_entries
        self._entries: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> str | None:
        with self._lock:
            expires_at, value = self._entries.get(key, (0.0, ""))
        return value if self._monotonic() < expires_at else None

    def put(self, key: str, value: str, ttl_seconds: float) -> None:
        with self._lock:
            self._entries.pop(key, None)
            self._entries[key] = (self._monotonic() + ttl_seconds, value)
            while len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)


class CachedUsageReader:
    """``provider_queries`` None: no provider is configured."""

    def __init__(self, provider_queries: ProviderQueries | None, cache: Cache, clock: Clock) -> None:
        self._provider_queries, self._cache, self._clock = provider_queries, cache, clock

    def read(self, org_id: str, external_ids: ExternalIds, *, provider_down: bool) -> UsageResponse:
        """``provider_down``: Lago's circuit breaker is open, so Lago is not called."""
        if (cached := _parse_cached(self._cache.get(org_id))) is not None:
            return cached
        if provider_down or self._provider_queries is None:
            return UsageResponse(state="unavailable", as_of=self._clock(), reason=_LAGO_UNAVAILABLE)
        usage = _usage_response(self._provider_queries.usage(org_id, external_ids), self._clock())
        self._cache.put(
            org_id,
            usage.model_dump_json(),
            UNAVAILABLE_CACHE_SECONDS if usage.state == "unavailable" else USAGE_CACHE_SECONDS,
        )
        return usage


def _usage_response(result: ProviderUsage | QueryFailure | None, now: datetime) -> UsageResponse:
    if isinstance(result, QueryFailure):
        return UsageResponse(state="unavailable", as_of=now, reason=_LAGO_UNAVAILABLE)
    if result is None:
        return UsageResponse(state="none", as_of=now, reason=_NO_SUBSCRIPTION)
    return UsageResponse(
        state="known",
        since=result.since,
        until=result.until,
        currency=result.currency,
        amount=result.amount,
        metrics=[_usage_metric(metric) for metric in result.metrics],
        as_of=now,
    )


def _usage_metric(line: UsageLine) -> UsageMetric:
    return UsageMetric(code=line.code, name=line.name, units=line.units, amount=line.amount)


def _parse_cached(text: str | None) -> UsageResponse | None:
    """None also for an entry that another version of this program stored in another form."""
    try:
        return None if text is None else UsageResponse.model_validate_json(text)
    except ValidationError:
        return None
