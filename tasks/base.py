"""The shared task: where it finds its runtime, what Flower may see of it, and how an outcome becomes the next step.

Arguments that leave a worker in events and logs are organization ids, whatever the sender put into the message, on the
first run and on every retry (celery.md 0.10). Waits of a few seconds (``LONGEST_RETRY``) are Celery's countdowns and
retries, seen in Flower; longer ones are the row's and the sweep's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from celery import Celery, Task
from celery.exceptions import Reject, Retry
from celery.utils.time import get_exponential_backoff_interval
from celery.worker.request import Request
from sqlalchemy.exc import IntegrityError

from core.catalog.plans import Catalog
from core.common.clock import Clock
from core.db.database import DATABASE_IS_AWAY, Database
from core.emails.sender import Post
from core.organizations.validation import ID_PATTERN
from core.ports.spec import Provider
from core.reconcile.backoff import LONGEST_RETRY
from core.reconcile.reconciler import Sync
from core.webhooks.dispatcher import Courier
from tasks import queue
from tasks.routing import TASK_OF, Ring

if TYPE_CHECKING:
    from celery.worker.request import _InfoDict  # only the published types have it

# Seconds in the slot of a worker that met a database which is away: a few tries a second, whatever the backlog.
PAUSE = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What the tasks of one process work with; opened once, after the fork.

    ``post`` None: no mail server is named. ``courier`` None: no secret to sign webhooks with is set.
    """

    database: Database
    sync: Sync
    catalog: Catalog
    clock: Clock
    close: Callable[[], None]
    post: Post | None = None
    courier: Courier | None = None


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
        shown = _ids(self.args)
        self._argsrepr, self._kwargsrepr = shown, "{}"
        self.request_dict.update(argsrepr=shown, kwargsrepr="{}")

    def info(self, safe: bool = True) -> _InfoDict:  # noqa: ARG002, FBT001, FBT002 - Celery's signature; it stays ids
        """What ``inspect`` and Flower's worker page show of messages at hand."""
        return super().info(safe=True)


def _ids(arguments: Sequence[object] | None) -> str:
    ids = [value for value in arguments or () if isinstance(value, str) and ID_PATTERN.fullmatch(value)]
    return "(" + ", ".join(ids) + ")"


class _Retrying(Protocol):
    """What Celery hands on to the message of a retry; its published types name fewer."""

    def retry(self, *, exc: Exception, countdown: float, throw: bool, argsrepr: str, kwargsrepr: str) -> Retry: ...


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
            message = "billing tasks run in an app made by worker.wiring.runtime"
            raise TypeError(message)
        return app.runtime

    @contextmanager
    def outlasting_the_database(self) -> Iterator[None]:
        """While the database is away the message comes again, for as long as it takes: it may be nowhere else.

        So does one that kept meeting others who put in the same (``service_events``). Whoever meets such waits where he
        is before he sends it: a slot that waits takes no further message, so a backlog stays with the broker.
        """
        try:
            yield
        except (*DATABASE_IS_AWAY, IntegrityError) as error:
            # The class alone: a database's own words may repeat what was sent to it.
            reason = f"the database does not take it now ({type(error).__name__})"
        else:
            return
        time.sleep(PAUSE)
        wait = get_exponential_backoff_interval(1, self.request.retries, int(LONGEST_RETRY), full_jitter=True)
        raise self.again(reason, max(0.2, wait)) from None

    def again(self, reason: str | None, seconds: float) -> Exception:
        """What ends this run and brings the message once more; if it cannot be sent, the broker keeps the present one.

        Raised where an error is at hand, it is raised ``from None``: a traceback in Flower would show that one too.
        """
        try:
            return cast("_Retrying", self).retry(
                exc=NotYetError(reason),
                countdown=queue.wait(self.app, seconds),
                throw=False,
                argsrepr=_ids(self.request.args),
                kwargsrepr="{}",
            )
        except Reject as unsent:
            # The class alone here, too: Redis repeats what it refuses.
            return Reject(type(unsent.args[0]).__name__, requeue=True)

    def sync(self, provider: Provider, org_id: str, *, bulk: bool) -> None:
        """One round, and what it asks for next. Raises Celery's ``Retry`` or ``ParkedForAPersonError``."""
        with self.outlasting_the_database():
            outcome = self.runtime.sync.run(org_id, provider, bulk=bulk)
        for woken in outcome.wake:
            queue.send(self.app, Ring(TASK_OF[woken], org_id, bulk))
        if outcome.kind == "parked":
            raise ParkedForAPersonError(outcome.error)
        if outcome.again_in is None or outcome.again_in > LONGEST_RETRY:
            return
        if outcome.kind == "retry":
            raise self.again(outcome.error, outcome.again_in)
        queue.send(self.app, Ring(TASK_OF[provider], org_id, bulk, outcome.again_in))
