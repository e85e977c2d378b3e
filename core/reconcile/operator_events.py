"""Events for operators: a link was parked or stopped by the payment brake, or a provider's circuit breaker opened.

Each is recorded in the transaction that makes the transition, so there is exactly one for each. They contain ids and
codes, and no text of a provider.
"""

from __future__ import annotations

from core.db.models.providers import BreakerReason
from core.events import outbox
from core.events.event_types import ChangeContext
from core.ports.errors import PaymentBrakeError, ProviderError
from core.ports.spec import Provider

# The breaker is about all organizations, so its event is about none of them.
_NO_ORGANIZATION = ""


def record_parked(change: ChangeContext, org_id: str, error: ProviderError) -> None:
    data = {"provider": error.provider, "kind": error.kind, "code": error.code}
    outbox.record(change, "link.parked", org_id, {name: value for name, value in data.items() if value is not None})


def record_payment_on_hold(change: ChangeContext, org_id: str, error: PaymentBrakeError) -> None:
    outbox.record(change, "link.payment_on_hold", org_id, {"provider": error.provider, "code": error.code})


def record_unavailable(change: ChangeContext, provider: Provider, opened: BreakerReason | None) -> None:
    """``opened`` None: the breaker was open before, or is still closed."""
    if opened is not None:
        outbox.record(change, "provider.unavailable", _NO_ORGANIZATION, {"provider": provider, "reason": opened})
