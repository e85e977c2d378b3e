"""The clock of the domain: aware UTC in whole microseconds, so both databases return what was stored."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    return datetime.now(UTC)


def to_utc(time: datetime) -> datetime:
    """Raises ``ValueError`` at the ends of time, where another zone's time has no year in UTC."""
    try:
        return time.astimezone(UTC)
    except OverflowError:
        message = "must be between the years 1 and 9999 in UTC"
        raise ValueError(message) from None
