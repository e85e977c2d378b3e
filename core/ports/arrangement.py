"""What somebody arranged for a subscription at a provider: a planned end, a pause, a schedule, a payment to begin with.

billing-sync observes it, shows it, and changes no plan while it is there. It never sets or removes one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """At least one of them. ``ends_at``: the planned end. ``has_schedule``: Stripe's own schedule changes it later.

    ``waits_for_payment``: Lago only: it begins with its first payment, or its upgrade does (lago.md 5.4).
    """

    ends_at: datetime | None = None
    is_paused: bool = False
    has_schedule: bool = False
    waits_for_payment: bool = False

    @property
    def phrase(self) -> str:
        """For a sentence: "a planned end on 2026-12-31 and a pause"."""
        parts = [
            f"a planned end on {self.ends_at:%Y-%m-%d}" if self.ends_at is not None else None,
            "a pause" if self.is_paused else None,
            "a schedule" if self.has_schedule else None,
            "an open first payment" if self.waits_for_payment else None,
        ]
        return " and ".join(part for part in parts if part is not None)


def to_json(arrangement: Arrangement | None) -> dict[str, Any] | None:
    """As a billing link stores it."""
    if arrangement is None:
        return None
    return {
        "ends_at": arrangement.ends_at.isoformat() if arrangement.ends_at is not None else None,
        "is_paused": arrangement.is_paused,
        "has_schedule": arrangement.has_schedule,
        "waits_for_payment": arrangement.waits_for_payment,
    }


def from_json(stored: Mapping[str, Any] | None) -> Arrangement | None:
    if stored is None:
        return None
    ends_at = stored["ends_at"]
    return Arrangement(
        ends_at=datetime.fromisoformat(ends_at) if ends_at is not None else None,
        is_paused=stored["is_paused"],
        has_schedule=stored["has_schedule"],
        waits_for_payment=stored.get("waits_for_payment", False),  # a link may be stored from before there was one
    )
