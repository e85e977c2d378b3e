"""Which event wakes which task: one table, and the queue of each task. Names here are protocol."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from core.events.event_types import EventType
from core.ports.spec import Provider

RECEIVE: Final = "events.receive"
HANDLE_WEBHOOKS: Final = "webhooks.handle"
SYNC_TO_STRIPE: Final = "customers.sync_to_stripe"
SYNC_TO_LAGO: Final = "customers.sync_to_lago"
SWEEP: Final = "billing.sweep"
PLAN: Final = "billing.plan"
MAILS: Final = "mails.send"
DELIVER: Final = "webhooks.deliver"

QUEUE_OF: Final[dict[str, str]] = {
    RECEIVE: "events",
    PLAN: "events",
    HANDLE_WEBHOOKS: "events",
    # By itself: a backlog of events would outlast the few seconds for which a sweep is worth anything.
    SWEEP: "sweep",
    SYNC_TO_STRIPE: "stripe",
    SYNC_TO_LAGO: "lago",
    MAILS: "mails",
    DELIVER: "webhooks",
}
# What the sweep hands over stands in queues of its own, so that no fresh change waits behind an import.
BULK_QUEUE_OF: Final[dict[str, str]] = {SYNC_TO_STRIPE: "stripe_bulk", SYNC_TO_LAGO: "lago_bulk"}
QUEUES: Final = tuple(sorted({*QUEUE_OF.values(), *BULK_QUEUE_OF.values()}))
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
    # It came from them.
    "organization.synced": (),
}


@dataclass(frozen=True, slots=True)
class Ring:
    """One task for one organization; the broker is only a doorbell. ``bulk``: nobody waits for it.

    ``after``: seconds until it is to be worked on.
    """

    task: str
    org_id: str
    bulk: bool = False
    after: float = 0.0

    @property
    def provider(self) -> Provider:
        return "stripe" if self.task == SYNC_TO_STRIPE else "lago"

    @property
    def queue(self) -> str:
        return BULK_QUEUE_OF[self.task] if self.bulk else QUEUE_OF[self.task]


def rings(events: Iterable[tuple[str, str]]) -> list[Ring]:
    """The tasks that ``(type, org_id)`` pairs call for, each once: many events of one organization ring one bell.

    A type that this version does not know rings nobody; the sweep finds what it changed.
    """
    tasks = {str(known): woken for known, woken in TASKS_OF.items()}
    called = [Ring(task, org_id) for event_type, org_id in events for task in tasks.get(event_type, ())]
    return list(dict.fromkeys(called))
