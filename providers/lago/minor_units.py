"""How Lago counts amounts (lago.md 4): as the Ruby library ``money`` 7.0 does."""

from __future__ import annotations

from typing import Final

from core.ports.minor_units import MinorUnits

LAGO_UNITS: Final = MinorUnits(provider="lago", decimals={"HUF": 0, "MGA": 0}, steps={})
