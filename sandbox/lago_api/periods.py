"""Billing periods of Lago's subscriptions, in UTC (lago.md 5.1, ``billing_time``)."""

from datetime import UTC, datetime

from sandbox.months import period_containing, utc_datetime

HOUR = 3600.0
MONTHS_BY_LAGO_INTERVAL = {"monthly": 1, "quarterly": 3, "semiannual": 6, "yearly": 12}
CALENDAR_ANCHOR = datetime(2001, 1, 1, tzinfo=UTC)  # a Monday, and the first day of a month, quarter, half and year


def billing_period(*, interval: str, billing_time: str, subscription_at: float, moment: float) -> tuple[float, float]:
    """Calendar periods begin on the 1st, on Monday or on 1 January; anniversaries on ``subscription_at``'s day."""
    first_day = utc_datetime(subscription_at).replace(hour=0, minute=0, second=0, microsecond=0)
    anchor = first_day if billing_time == "anniversary" else CALENDAR_ANCHOR
    days = 7 if interval == "weekly" else 0
    start, end = period_containing(
        anchor, utc_datetime(moment), days=days, months=MONTHS_BY_LAGO_INTERVAL.get(interval, 0)
    )
    return start.timestamp(), end.timestamp()


def next_billing_run(moment: float, minute: int) -> float:
    """When the hourly job that renews and switches runs next, at ``moment`` or later."""
    run = moment // HOUR * HOUR + minute * 60
    return run if run >= moment else run + HOUR
