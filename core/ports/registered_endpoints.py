"""A webhook endpoint that is registered at a provider, as the provider lists it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredEndpoint:
    """``events``: the types that are sent; ``None``: all. ``signature``: Lago only."""

    url: str
    events: frozenset[str] | None
    is_enabled: bool = True
    signature: Literal["hmac", "jwt"] | None = None

    def missing(self, needed: Collection[str]) -> list[str]:
        """The needed event types that it does not send."""
        return [] if self.events is None else sorted(set(needed) - self.events)
