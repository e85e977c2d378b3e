"""The error for a value that cannot be accepted, and the check of a word against those allowed."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

ChoiceT = TypeVar("ChoiceT", bound=str)


class InvalidChangeError(ValueError):
    """A value that cannot be accepted; the message names the field and what it may be. ``field`` is its name."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def one_of(field: str, value: str, allowed: Collection[ChoiceT]) -> ChoiceT:
    for choice in allowed:
        if choice == value:
            return choice
    raise InvalidChangeError(field, f"{field} must be one of {', '.join(allowed)}; got {value!r}")
