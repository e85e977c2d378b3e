"""Which event wakes which task: one table, and the queue of each task. Names here are protocol."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from core.events import EventType
from core.gateways import Provider

RECEIVE: Final = "events.receive"
SYNC_TO_STRIPE: Final = "customers.sync_to_stripe"
SYNC_TO_LAGO: Final = "customers.sync_to_lago"
SWEEP: Final = "billing.sweep"

QUEUE_OF: Final[dict[str, str]] = {
    RECEIVE: "events",
    SWEEP: "events",
    SYNC_TO_STRIPE: "stripe",
    SYNC_TO_LAGO: "lago",
}
TASK_OF: Final[dict[Provider, str]] = {"stripe": SYNC_TO_STRIPE, "lago": SYNC_TO_LAGO}

_BOTH: Final = (SYNC_TO_STRIPE, SYNC_TO_LAGO)
TASKS_OF: Final[dict[EventType, tuple[str, ...]]] = {
    "organization.created": _BOTH,
    "organization.renamed": _BOTH,
    "organization.plan_changed": _BOTH,
    "organization.status_changed": _BOTH,
    "organization.billing_details_changed": _BOTH,
    # No biller knows members.
    "membership.added": (),
    "membership.removed": (),
    "membership.role_changed": (),
}


@dataclass(frozen=True, slots=True)
class Ring:
    """One task for one organization; the broker is only a doorbell."""

    task: str
    org_id: str

    @property
    def queue(self) -> str:
        return QUEUE_OF[self.task]


def rings(events: Iterable[tuple[str, str]]) -> list[Ring]:
    """The tasks that ``(type, org_id)`` pairs call for, each once: many events of one organization ring one bell.

    A type that this version does not know rings nobody; the sweep finds what it changed.
    """
    tasks = {str(known): woken for known, woken in TASKS_OF.items()}
    called = [Ring(task, org_id) for event_type, org_id in events for task in tasks.get(event_type, ())]
    return list(dict.fromkeys(called))
