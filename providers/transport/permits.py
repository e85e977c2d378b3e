"""The second wall of observe mode: no request that writes leaves without a permit that says that it may.

The first is that an observed organization's next step is planned and not taken. This one also covers requests that
belong to no organization, and every mistake in the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from core.ports.errors import WriteRefusedError
from core.ports.provider import RequestPermits
from core.ports.spec import PROVIDER_NAMES, Provider

# A POST, because it takes a body; it writes nothing.
PREVIEW_OPERATIONS: Final = frozenset({"POST /v1/invoices/create_preview"})


@dataclass(frozen=True, slots=True)
class UnlimitedPermits:
    """For requests outside a sync attempt, such as those for prices and the account."""

    may_write: bool = False

    def before_request(self, operation: str) -> None:
        """Nothing limits them."""

    def after_response(self, request_id: str | None) -> None:
        """Nobody asks for it."""


READ_ONLY: Final = UnlimitedPermits()


def refuse_write(provider: Provider, permits: RequestPermits, operation: str) -> None:
    """Call before a request is sent. Raises ``WriteRefusedError`` unless it only reads, or may write."""
    if permits.may_write or operation.startswith("GET ") or operation in PREVIEW_OPERATIONS:
        return
    message = (
        f"{operation} was not sent to {PROVIDER_NAMES[provider]}, because nothing is written in observe mode: set "
        "MANAGEMENT=manage"
    )
    raise WriteRefusedError(provider, message, "observe_only")
