"""The shared task: where it finds its runtime, what Flower may see of it, and how an outcome becomes the next step.

Arguments that leave a worker in events and logs are organization ids, whatever the sender put into the message, on the
first run and on every retry (celery.md 0.10). Waits up to a minute are Celery retries, seen in Flower; longer ones are
the row's and the sweep's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery import Celery, Task
from celery.worker.request import Request

from core.catalog import Catalog
from core.clock import Clock
from core.database import Database
from core.gateways import Provider
from core.links import LONGEST_RETRY
from core.organizations import ID_PATTERN
from core.sync import Outcome, Sync
from tasks.routing import TASK_OF

if TYPE_CHECKING:
    from celery.worker.request import _InfoDict  # only the published types have it

# What a sweep puts into a provider's queue at most; a longer queue is not topped up.
QUEUE_IS_FULL = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What the tasks of one process work with; opened once, after the fork."""

    database: Database
    sync: Sync
    catalog: Catalog
    clock: Clock
    close: Callable[[], None]


class BillingApp(Celery):
    """A Celery app that opens its runtime when the first task asks for it."""

    def __init__(self, *args: Any, open_runtime: Callable[[], Runtime], **options: Any) -> None:  # noqa: ANN401 - Celery's own
        super().__init__(*args, **options)
        self._open_runtime = open_runtime
        self._runtime: Runtime | None = None
        self._opening = threading.Lock()

    @property
    def runtime(self) -> Runtime:
        with self._opening:
            if self._runtime is None:
                self._runtime = self._open_runtime()
            return self._runtime

    def close_runtime(self) -> None:
        with self._opening:
            if self._runtime is not None:
                self._runtime.close()
            self._runtime = None


class IdsOnlyRequest(Request):
    """What workers tell Flower and the log of a message: the organization ids in it, nothing else."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - Celery's own
        super().__init__(*args, **options)
        ids = [value for value in self.args or () if isinstance(value, str) and ID_PATTERN.fullmatch(value)]
        shown = "(" + ", ".join(ids) + ")"
        self._argsrepr, self._kwargsrepr = shown, "{}"
        self.request_dict.update(argsrepr=shown, kwargsrepr="{}")

    def info(self, safe: bool = True) -> _InfoDict:  # noqa: ARG002, FBT001, FBT002 - Celery's signature; it stays ids
        """What ``inspect`` and Flower's worker page show of messages at hand."""
        return super().info(safe=True)


class ParkedForAPersonError(Exception):
    """Ends a task red in Flower: the link waits for a person, who finds it with ``billing-sync parked``."""


class NotYetError(Exception):
    """Shown in Flower as the reason of a retry."""


class BillingTask(Task[Any, Any]):
    """Base of all tasks. Attempts are counted in the row, so Celery itself never gives up."""

    abstract = True
    Request = "tasks.base:IdsOnlyRequest"
    max_retries = None
    ignore_result = True
    throws = (ParkedForAPersonError,)

    @property
    def runtime(self) -> Runtime:
        app = self.app
        if not isinstance(app, BillingApp):
            message = "billing tasks run in an app made by worker.app"
            raise TypeError(message)
        return app.runtime

    def ring(self, provider: Provider, org_id: str, countdown: float = 0.0) -> None:
        task = TASK_OF[provider]
        self.app.send_task(task, args=[org_id], countdown=countdown or None, argsrepr=f"({org_id})")

    def follow(self, outcome: Outcome, provider: Provider, org_id: str) -> None:
        """Do what the outcome asks for next. Raises Celery's ``Retry`` or ``ParkedForAPersonError``."""
        for woken in outcome.wake:
            self.ring(woken, org_id)
        if outcome.kind == "parked":
            raise ParkedForAPersonError(outcome.error)
        if outcome.again_in is None or outcome.again_in > LONGEST_RETRY:
            return
        if outcome.kind == "retry":
            raise self.retry(exc=NotYetError(outcome.error), countdown=outcome.again_in)
        self.ring(provider, org_id, countdown=outcome.again_in)
