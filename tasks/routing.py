"""Which event starts which task, and the queue of each task. Other services rely on the names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from core.events.event_types import EventType
from core.ports.spec import Provider

RECEIVE_EVENT: Final = "events.receive"
PROCESS_PROVIDER_WEBHOOKS: Final = "provider_webhooks.process"
FIND_MISSED_WEBHOOKS: Final = "provider_webhooks.find_missed"
SYNC_TO_STRIPE: Final = "customers.sync_to_stripe"
SYNC_TO_LAGO: Final = "customers.sync_to_lago"
SWEEP: Final = "billing.sweep"
CHECK_DRIFT: Final = "drift.check"
TAKE_BACKUP: Final = "backups.take"
SEND_EMAILS: Final = "emails.send"
DELIVER_WEBHOOKS: Final = "webhooks.deliver"

PERIODIC_TASKS: Final = frozenset({SWEEP, CHECK_DRIFT, TAKE_BACKUP, SEND_EMAILS, FIND_MISSED_WEBHOOKS})

QUEUE_BY_TASK: Final[dict[str, str]] = {
    RECEIVE_EVENT: "events",
    CHECK_DRIFT: "events",
    TAKE_BACKUP: "events",
    PROCESS_PROVIDER_WEBHOOKS: "events",
    FIND_MISSED_WEBHOOKS: "events",
    # A queue of its own: a sweep message is useful for a few seconds, and a backlog of events lasts longer.
    SWEEP: "sweep",
    SYNC_TO_STRIPE: "stripe",
    SYNC_TO_LAGO: "lago",
    SEND_EMAILS: "emails",
    DELIVER_WEBHOOKS: "webhooks",
}
# The sweep uses queues of its own, so that no single change waits behind an import.
BULK_QUEUE_BY_TASK: Final[dict[str, str]] = {SYNC_TO_STRIPE: "stripe_bulk", SYNC_TO_LAGO: "lago_bulk"}
QUEUES: Final = tuple(sorted({*QUEUE_BY_TASK.values(), *BULK_QUEUE_BY_TASK.values()}))
SYNC_TASK_BY_PROVIDER: Final[dict[Provider, str]] = {"stripe": SYNC_TO_STRIPE, "lago": SYNC_TO_LAGO}

_BOTH_PROVIDERS: Final = (SYNC_TO_STRIPE, SYNC_TO_LAGO)
TASKS_BY_EVENT_TYPE: Final[dict[EventType, tuple[str, ...]]] = {
    "organization.created": _BOTH_PROVIDERS,
    "organization.renamed": _BOTH_PROVIDERS,
    "organization.plan_changed": _BOTH_PROVIDERS,
    "organization.status_changed": _BOTH_PROVIDERS,
    "organization.billing_details_changed": _BOTH_PROVIDERS,
    "organization.sync_requested": _BOTH_PROVIDERS,
    "organization.adopted": _BOTH_PROVIDERS,
    "organization.released": _BOTH_PROVIDERS,
    "organization.management_changed": _BOTH_PROVIDERS,
    # The providers have no members.
    "membership.added": (),
    "membership.removed": (),
    "membership.role_changed": (),
    # It reports what the providers have already.
    "organization.synced": (),
    # Other services send mails because of it. Nothing changes before its day.
    "organization.price_change_scheduled": (),
    # An operator reads these.
    "link.parked": (),
    "link.payment_on_hold": (),
    "provider.unavailable": (),
}


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """One task for one organization. It holds no data, so it may be lost. ``bulk``: no user waits for it.

    ``delay_seconds``: how long RabbitMQ, or with Redis a worker, holds it back.
    """

    task: str
    org_id: str
    bulk: bool = False
    delay_seconds: float = 0.0

    @property
    def provider(self) -> Provider:
        return "stripe" if self.task == SYNC_TO_STRIPE else "lago"

    @property
    def queue(self) -> str:
        return BULK_QUEUE_BY_TASK[self.task] if self.bulk else QUEUE_BY_TASK[self.task]


def requests_for(events: Iterable[tuple[str, str]]) -> list[SyncRequest]:
    """The sync requests for ``(type, org_id)`` pairs, each once, however many events an organization has.

    An event type that this version does not know starts no task; the sweep finds what it changed.
    """
    tasks = {str(known_type): tasks_of_type for known_type, tasks_of_type in TASKS_BY_EVENT_TYPE.items()}
    requests = [SyncRequest(task, org_id) for event_type, org_id in events for task in tasks.get(event_type, ())]
    return list(dict.fromkeys(requests))
