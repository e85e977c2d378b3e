"""A provider request and its result: the types that the server, the providers and the observers share."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class InvalidControlRequestError(ValueError):
    """An invalid control request, setting or fault; names the field and says what is wrong."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(field, message)
        self.field = field
        self.message = message


# A provider's document: JSON with the provider's own keys.
JsonDocument = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ProviderRequest:
    """A request to a provider; ``path`` and ``query`` stay percent-encoded, since ``%2E`` and ``.`` differ for Lago."""

    id: str
    provider: str
    operation: str
    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def bearer_token(self) -> str:
        """The second word of Authorization; Lago ignores the scheme (lago.md 1.1)."""
        parts = self.headers.get("authorization", "").split()
        return parts[1] if len(parts) > 1 else ""

    @property
    def raw_text(self) -> str:
        """The text that a fault's ``match`` is searched in."""
        return f"{self.method} {self.path}?{self.query}\n{self.body.decode(errors='replace')}"


@dataclass(frozen=True, slots=True)
class ProviderResponse:
    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    content_type: str = "application/json"
    drip_seconds: float = 0.0

    @classmethod
    def of(cls, status: int, document: object, *headers: tuple[str, str]) -> "ProviderResponse":
        return cls(status, json.dumps(document, ensure_ascii=False).encode(), headers)


@dataclass(frozen=True, slots=True)
class ConnectionDropped:
    """The connection ends without a response: it is closed, or reset (RST) if ``reset``."""

    reset: bool = False


ExchangeResult = ProviderResponse | ConnectionDropped


@dataclass(frozen=True, slots=True)
class Exchange:
    """What an observer gets: the request without its API key, and the response (``status`` None: connection dropped).

    ``fault`` names the fault that changed the response, so that a check against the provider's documents can skip it.
    """

    provider: str
    operation: str
    method: str
    path: str
    query: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes
    status: int | None
    response_body: bytes
    fault: str | None
