"""When a Lago subscription's period begins and ends, in UTC (lago.md 5.1, ``billing_time``)."""

from datetime import UTC, datetime

from sandbox.months import at, period_of

MONTHS = {"monthly": 1, "quarterly": 3, "semiannual": 6, "yearly": 12}
MONDAY = datetime(2001, 1, 1, tzinfo=UTC)  # also the first of a month, a quarter, a half and a year


def period(*, interval: str, billing_time: str, subscription_at: float, moment: float) -> tuple[float, float]:
    """Calendar periods begin on the 1st, on Monday or on 1 January; anniversaries on ``subscription_at``'s day."""
    begun = at(subscription_at).replace(hour=0, minute=0, second=0, microsecond=0)
    anchor = begun if billing_time == "anniversary" else MONDAY
    days = 7 if interval == "weekly" else 0
    start, end = period_of(anchor, at(moment), days=days, months=MONTHS.get(interval, 0))
    return start.timestamp(), end.timestamp()
