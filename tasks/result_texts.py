"""What a sync task says of its end, in Flower and in the log: one sentence, with versions, ids and seconds only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from core.ports.spec import Provider
from core.reconcile.reconciler import ReconcileResult, WaitCause

WAIT_TEXT_BY_CAUSE: Final[Mapping[WaitCause, str]] = {
    "leased": "another worker syncs this organization",
    "lease_lost": "another worker took over; what was sent is read again",
    "breaker_open": "the circuit breaker is open, `billing-sync status` says why; the sweep goes on when it closes",
    "probe_in_progress": "the circuit breaker is open and its probe runs; the sweep goes on when it closes",
    "request": "no permit of the rate limiter yet",
    "payer": "the Stripe customer that Lago charges does not exist yet",
    "lago_unread": "Lago may have a customer that pays already, and was not read yet",
    "cooldown": "the last attempt was moments ago",
    "backoff": "the last attempt failed, `billing-sync status` says why",
    "object_limit": "the provider limits the requests to this customer",
    "wrong_account": "the API key belongs to another account",
}


def describe(provider: Provider, result: ReconcileResult) -> str:
    name = provider.capitalize()
    match result.kind:
        case "synced":
            return f"synced: {name} has version {result.version} ({_count(result.request_count)}){_next(result)}"
        case "observed":
            return f"observed: nothing was sent to {name}; `billing-sync management report` says what would be"
        case "idle":
            return _idle_text(name, result)
        case "parked" | "on_hold":
            state = "parked" if result.kind == "parked" else "on hold"
            cause = f": {result.error}" if result.error else "; nothing was sent"
            return f"{name} is {state}{cause}; see `billing-sync parked`"
        case "waiting" if result.error is None:
            cause = WAIT_TEXT_BY_CAUSE[result.reason] if result.reason is not None else "it is not its turn"
            return f"waits for {name}: {cause}{_next(result)}"
    return f"{result.error}{_next(result)}"


def _idle_text(name: str, result: ReconcileResult) -> str:
    if result.reason == "unknown_organization":
        return "nothing was sent: there is no such organization"
    return f"in sync already: {name} has version {result.version}; nothing was sent"


def _next(result: ReconcileResult) -> str:
    return "" if result.requeue_after is None else f"; the next attempt is in {result.requeue_after:.0f} s"


def _count(requests: int) -> str:
    return "1 request" if requests == 1 else f"{requests} requests"
