"""In which unit a currency's amounts are counted: ISO 4217's minor unit here, at some providers another one.

Every amount of ours, from the catalog to a quote, is in ISO's minor unit. It is converted where it is sent or read, and
only if nothing is lost: an amount that cannot be told exactly is a ``RejectedError``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from core.ports.errors import RejectedError
from core.ports.spec import PROVIDER_NAMES, Provider

# ISO 4217, list one. Currencies that are not named have two decimals.
_ISO_DECIMALS: Final[Mapping[str, int]] = {
    **dict.fromkeys(("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW"), 0),
    **dict.fromkeys(("PYG", "RWF", "UGX", "VND", "VUV", "XAF", "XOF", "XPF"), 0),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
    "CLF": 4,
}
# ISO gives them two decimals, but their minor unit is a fifth. Nobody can tell what 100 of them means.
_WITHOUT_DECIMAL_UNIT: Final = frozenset({"MRO", "MRU"})


_AMOUNT_TEXT: Final = re.compile(
    r"(?P<whole>[0-9]{1,18})(?:\.(?P<fraction>[0-9]{1,4}))? (?P<currency>[A-Z]{3})(?: as billing-sync counts it)?"
)
_UNITS: Final = (1, 10, 100, 1_000, 10_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class MinorUnits:
    """How one provider counts.

    ``decimals``: of the currencies that it counts otherwise than ISO. ``unclear``: what its documentation says of them
    contradicts itself. ``steps``: it takes only amounts that are divisible by this.
    """

    provider: Provider
    decimals: Mapping[str, int]
    unclear: frozenset[str] = frozenset()
    steps: Mapping[str, int]

    def decimals_of(self, currency: str) -> int:
        """Raises ``RejectedError`` for a currency whose unit cannot be told."""
        if currency in self.unclear | _WITHOUT_DECIMAL_UNIT:
            message = f"it cannot be told in which unit {PROVIDER_NAMES[self.provider]} counts {currency}"
            raise self._rejection(message)
        return self.decimals.get(currency, _iso_decimals(currency))

    def to_provider(self, amount: int, currency: str) -> int:
        converted = self._converted(amount, currency, _iso_decimals(currency), self.decimals_of(currency))
        step = self.steps.get(currency, 1)
        if converted % step:
            message = f"{PROVIDER_NAMES[self.provider]} takes amounts in {currency} in steps of {step}, not {converted}"
            raise self._rejection(message)
        return converted

    def from_provider(self, amount: int, currency: str) -> int:
        return self._converted(amount, currency, self.decimals_of(currency), _iso_decimals(currency))

    def text(self, amount: int, currency: str) -> str:
        """An amount as this provider counts it, for a sentence: ``49.00 USD``."""
        try:
            decimals = self.decimals_of(currency)
        except RejectedError:
            return f"{amount} {currency} as {PROVIDER_NAMES[self.provider]} counts it"
        return f"{amount / 10**decimals:.{decimals}f} {currency}"

    def _converted(self, amount: int, currency: str, old: int, new: int) -> int:
        converted, rest = divmod(amount * _UNITS[new], _UNITS[old])
        if rest:
            message = f"{amount} in {currency} with {old} decimals has no counterpart with {new}"
            raise self._rejection(message)
        return converted

    def _rejection(self, message: str) -> RejectedError:
        return RejectedError(self.provider, message, "minor_unit")


def amount_text(amount: int, currency: str) -> str:
    """``49.00 USD``. ``amount`` in ISO's minor unit."""
    if currency in _WITHOUT_DECIMAL_UNIT:
        return f"{amount} {currency} as billing-sync counts it"
    decimals = _iso_decimals(currency)
    return f"{amount // _UNITS[decimals]}{f'.{amount % _UNITS[decimals]:0{decimals}}' if decimals else ''} {currency}"


def amount_of(text: str) -> tuple[int, str] | None:
    """The amount and the currency of a text that ``amount_text`` wrote; None for any other text."""
    found = _AMOUNT_TEXT.fullmatch(text)
    if found is None:
        return None
    whole, fraction, currency = found["whole"], found["fraction"] or "", found["currency"]
    amount = int(whole + fraction)
    return (amount, currency) if amount_text(amount, currency) == text else None


def _iso_decimals(currency: str) -> int:
    return _ISO_DECIMALS.get(currency, 2)
