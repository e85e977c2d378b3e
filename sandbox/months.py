"""Calendar arithmetic of billing periods, in UTC.

A monthly period starts on the anchor's day, or on the last day of a shorter month.
"""

import calendar
from datetime import UTC, datetime, timedelta


def months_after(anchor: datetime, months: int) -> datetime:
    index = anchor.year * 12 + anchor.month - 1 + months
    year, month = divmod(index, 12)
    day = min(anchor.day, calendar.monthrange(year, month + 1)[1])
    return anchor.replace(year=year, month=month + 1, day=day)


def period_containing(
    anchor: datetime, moment: datetime, *, days: int = 0, months: int = 0
) -> tuple[datetime, datetime]:
    """The period that contains ``moment``; periods of ``days`` or ``months`` follow each other from ``anchor``."""
    if days:
        length = timedelta(days=days)
        start = anchor + length * max(0, (moment - anchor) // length)
        return start, start + length
    months_apart = (moment.year - anchor.year) * 12 + moment.month - anchor.month
    count = max(0, months_apart // months + 1)
    while count > 0 and months_after(anchor, count * months) > moment:
        count -= 1
    return months_after(anchor, count * months), months_after(anchor, (count + 1) * months)


def utc_datetime(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
