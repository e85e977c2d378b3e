"""How Stripe counts amounts (stripe.md 5)."""

from __future__ import annotations

from typing import Final

from core.ports.minor_units import MinorUnits

STRIPE_UNITS: Final = MinorUnits(
    provider="stripe",
    # Whole krónur only, but still counted with two decimals.
    decimals={"ISK": 2, "MGA": 0},
    # Listed both without decimals and as counted with two.
    unclear=frozenset({"UGX"}),
    steps={"ISK": 100, "BHD": 10, "JOD": 10, "KWD": 10, "OMR": 10, "TND": 10},
)
