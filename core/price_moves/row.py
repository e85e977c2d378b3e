"""One organization in a list of price moves, and the days of its move."""

from __future__ import annotations

import calendar
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from core.ports.spec import Provider

START_BEFORE_PERIOD_END: Final = timedelta(days=1)
"""So early it is scheduled at a provider that switches by itself."""
START_AFTER_PERIOD_END: Final = timedelta(hours=2)
"""Lago bills a period by an hourly job. A rise is sent once the new period is billed (lago.md 5.1)."""
MAX_NOTICE_DAYS: Final = 366
LATE_AFTER: Final = timedelta(days=1)
"""A day is moved on if its notice would come so much later than it was to come."""
INTERVAL_PATTERN: Final = re.compile(r"([1-9][0-9]{0,3}) (day|week|month|year)")
_MAX_PERIODS: Final = 1_000
_LONGEST_MONTH: Final = 31
_SHORTEST_MONTH: Final = 28
_MONTHS_PER_YEAR: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceMoveRow:
    """``amount_before``: what it really pays, in minor units; None: it was not read, and then ``reason`` says why.

    ``interval``: of both prices, such as ``1 month``. ``version``, ``sold_price_id``: of our rows when it was listed.
    ``reason``: why it is not moved; None: it is.
    """

    org_id: str
    name: str
    provider: Provider
    tier: str
    from_code: str
    to_code: str
    amount_before: int | None
    amount_after: int
    currency: str
    interval: str
    at_period_end: bool
    effective_at: datetime | None
    notice_days: int
    version: int
    sold_price_id: str | None
    reason: str | None = None


def lasts_past_notice(effective_at: datetime, notice_days: int, now: datetime) -> bool:
    """Whether a notice that comes now comes about as many days before as it has to."""
    return effective_at - now >= timedelta(days=notice_days) - LATE_AFTER


def period_end_after(period_end: datetime, interval: str, earliest: datetime, *, latest_day: bool) -> datetime:
    """The first end of a period that is not before ``earliest``.

    A period that began on the 31st ends on the last day of a shorter month, and which day it began on is not shown. So
    a later end is the earliest that is possible, or with ``latest_day`` the latest.
    """
    found = INTERVAL_PATTERN.fullmatch(interval)
    if found is None:
        raise ValueError(interval)
    count, unit = int(found[1]), found[2]
    for periods in range(_MAX_PERIODS):
        end = _later(period_end, unit, count * periods, latest_day=latest_day)
        if end >= earliest:
            return end
    raise ValueError(interval)


def _later(moment: datetime, unit: str, count: int, *, latest_day: bool) -> datetime:
    if unit in {"day", "week"} or not count:
        return moment + timedelta(days=count * (7 if unit == "week" else 1))
    months = moment.month - 1 + count * (_MONTHS_PER_YEAR if unit == "year" else 1)
    year, month = moment.year + months // _MONTHS_PER_YEAR, months % _MONTHS_PER_YEAR + 1
    day = _LONGEST_MONTH if latest_day and moment.day >= _SHORTEST_MONTH else moment.day
    return moment.replace(year=year, month=month, day=min(day, calendar.monthrange(year, month)[1]))


def follows_new_period(provider: Provider, *, is_lower: bool) -> bool:
    """At the end of a period: whether it is sent once the new one has begun. Lago schedules no rise (lago.md 5.1)."""
    return provider == "lago" and not is_lower


def start_at(provider: Provider, effective_at: datetime, *, at_period_end: bool, is_lower: bool) -> datetime:
    """When the link gets its new code."""
    if not at_period_end:
        return effective_at
    if follows_new_period(provider, is_lower=is_lower):
        return effective_at + START_AFTER_PERIOD_END
    return effective_at - START_BEFORE_PERIOD_END


def notice_at(effective_at: datetime, notice_days: int, starts_at: datetime) -> datetime:
    """When the notice is due: at the latest when the move starts, because it starts only after that."""
    return min(effective_at - timedelta(days=notice_days), starts_at)
