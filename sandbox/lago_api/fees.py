"""What Lago bills of a plan's price: whole periods, or the days of one in which a subscription begins or ends.

The day of the beginning counts, and of an end the day belongs to the old subscription unless another one takes its
place (lago.md 5.6). As recorded on 28 November: 1900 a month are 190 for three days of thirty.
"""

from sandbox.months import utc_datetime

Period = tuple[float, float]


def share(price: int, days: int, period: Period) -> int:
    """The price of so many days of the period, rounded half up, as Ruby rounds."""
    duration = days_between(*period)
    amount = (2 * abs(price) * days + duration) // (2 * duration)
    return amount if price >= 0 else -amount


def ahead(price: int, started_at: float, period: Period) -> int:
    """From the day of the beginning, or of the period, to the period's end."""
    return share(price, days_between(max(started_at, period[0]), period[1]), period)


def unused(price: int, ended_at: float, period: Period, *, is_replaced: bool) -> int:
    """What was billed ahead and is credited: the days after the end, and its own day if another one takes its place."""
    return share(price, days_between(ended_at, period[1]) - (0 if is_replaced else 1), period)


def used(price: int, started_at: float, ended_at: float, period: Period, *, is_replaced: bool) -> int:
    """What is billed behind: the days up to the end, and its own day unless another one takes its place."""
    return share(price, days_between(max(started_at, period[0]), ended_at) + (0 if is_replaced else 1), period)


def days_between(first: float, last: float) -> int:
    return (utc_datetime(last).date() - utc_datetime(first).date()).days
