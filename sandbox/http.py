"""One request and what became of it: the only shapes the doors, the billers and the observers share."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class InvalidControlRequestError(ValueError):
    """A control request, setting or fault that makes no sense: the field, and the sentence that says why."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(field, message)
        self.field = field
        self.message = message


# A document as a provider shows it: JSON, whose keys are the provider's, not ours.
JsonDocument = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ProviderRequest:
    """A request to a provider; ``path`` and ``query`` are still percent-encoded, for Lago tells ``%2E`` from ``.``."""

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
        """The second word of Authorization; Lago does not look at the scheme (lago.md 1.1)."""
        parts = self.headers.get("authorization", "").split()
        return parts[1] if len(parts) > 1 else ""

    @property
    def raw_text(self) -> str:
        """What a fault's ``match`` is looked for in."""
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
    """The connection dies without an answer: closed, or reset (RST) when ``reset``."""

    reset: bool = False


ExchangeResult = ProviderResponse | ConnectionDropped


@dataclass(frozen=True, slots=True)
class Exchange:
    """What an observer sees: the request without its key, and the answer (``status`` None: connection dropped).

    ``fault`` names the fault that shaped the answer, so that whoever holds answers against a provider's documents can
    leave those out.
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
