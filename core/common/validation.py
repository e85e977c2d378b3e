"""The error for an invalid value, and the check of a value against those allowed."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

ChoiceT = TypeVar("ChoiceT", bound=str)


class InvalidChangeError(ValueError):
    """Raised for a value that is not accepted. ``field`` is its name; the message names it and what it may be."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def one_of(field: str, value: str, allowed: Collection[ChoiceT]) -> ChoiceT:
    for choice in allowed:
        if choice == value:
            return choice
    raise InvalidChangeError(field, f"{field} must be one of {', '.join(allowed)}; got {value!r}")
