"""The usage of the running period as Lago counts it, kept for a short while; a Lago that is away is said to be away.

What is kept is up to ``KEPT`` old. That Lago did not answer is kept too, for a moment: who looks again and again while
it is away waits once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from typing import Final, Literal, Protocol

from pydantic import BaseModel, Field, ValidationError

from api.provider_queries import Asking, Unanswered
from core.common.clock import Clock
from core.ports.quotes import Metered
from core.ports.quotes import Usage as Told

KEPT: Final = 45.0  # seconds
AWAY_KEPT: Final = 5.0  # seconds
MOST_KEPT: Final = 10_000

_AWAY: Final = "Lago, which counts the usage, cannot be asked now."
_NONE: Final = "Lago holds no subscription of it yet."


class Metric(BaseModel):
    """``units`` is a decimal; ``amount`` is in the minor unit of the usage's currency."""

    code: str = Field(examples=["api_calls"])
    name: str
    units: str = Field(examples=["12.0"])
    amount: int = Field(examples=[1200])


class Usage(BaseModel):
    """``unavailable``: Lago does not answer, so nothing is known; ``none``: there is no subscription to use.

    ``amount`` is what was used and is not billed yet, in minor units; the plan's price is not in it. null: not known.
    """

    state: Literal["known", "none", "unavailable"]
    since: datetime | None = None
    until: datetime | None = None
    currency: str | None = Field(default=None, examples=["USD"])
    amount: int | None = Field(default=None, examples=[1200])
    metrics: list[Metric] = Field(default_factory=list)
    as_of: datetime
    why: str | None = None


class Shelf(Protocol):
    """Keeps a text for some seconds, or loses it earlier; never an error."""

    def get(self, key: str, /) -> str | None: ...

    def put(self, key: str, text: str, seconds: float, /) -> None: ...


class LocalShelf:
    """Of one process; what was put longest ago makes room."""

    def __init__(self, monotonic: Callable[[], float], most: int = MOST_KEPT) -> None:
        self._monotonic, self._most = monotonic, most
        self._kept: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> str | None:
        with self._lock:
            until, text = self._kept.get(key, (0.0, ""))
        return text if self._monotonic() < until else None

    def put(self, key: str, text: str, seconds: float) -> None:
        with self._lock:
            self._kept.pop(key, None)
            self._kept[key] = (self._monotonic() + seconds, text)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)


class UsageReader:
    """``asking`` None: no biller is named."""

    def __init__(self, asking: Asking | None, shelf: Shelf, clock: Clock) -> None:
        self._asking, self._shelf, self._clock = asking, shelf, clock

    def of(self, org_id: str, *, stopped: bool) -> Usage:
        """``stopped``: Lago is not asked now, by anybody."""
        if (kept := _read(self._shelf.get(org_id))) is not None:
            return kept
        if stopped or self._asking is None:
            return Usage(state="unavailable", as_of=self._clock(), why=_AWAY)
        usage = _usage(self._asking.usage(org_id), self._clock())
        self._shelf.put(org_id, usage.model_dump_json(), AWAY_KEPT if usage.state == "unavailable" else KEPT)
        return usage


def _usage(told: Told | Unanswered | None, now: datetime) -> Usage:
    if isinstance(told, Unanswered):
        return Usage(state="unavailable", as_of=now, why=_AWAY)
    if told is None:
        return Usage(state="none", as_of=now, why=_NONE)
    return Usage(
        state="known",
        since=told.since,
        until=told.until,
        currency=told.currency,
        amount=told.amount,
        metrics=[_metric(each) for each in told.metrics],
        as_of=now,
    )


def _metric(told: Metered) -> Metric:
    return Metric(code=told.code, name=told.name, units=told.units, amount=told.amount)


def _read(text: str | None) -> Usage | None:
    """What another version of this program kept may have another form."""
    try:
        return None if text is None else Usage.model_validate_json(text)
    except ValidationError:
        return None
