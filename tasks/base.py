"""Base of all tasks: its runtime, what Flower may show of it, and how a reconcile result becomes the next step.

A sync task that did nothing never ends as SUCCESS, unless there was nothing to do. It ends as WAITING or FAILURE, and
its result or exception says why.

Of the arguments, events and logs contain only organization ids, whatever the sender put into the message, on the first
run and on every retry (celery.md 0.10). Waits of a few seconds (``MAX_QUEUE_DELAY_SECONDS``) are Celery's countdowns
and retries, which Flower shows. Longer ones are stored in the row, and the sweep ends them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol, cast

import structlog
from billiard.einfo import ExceptionInfo
from celery import Celery, Task
from celery.exceptions import Ignore, Reject, Retry, TaskPredicate
from celery.utils.time import get_exponential_backoff_interval
from celery.worker.request import Request
from sqlalchemy.exc import IntegrityError

from core.catalog.plans import Catalog
from core.common.clock import Clock
from core.common.error_place import raised_at
from core.db.database import DATABASE_UNAVAILABLE_ERRORS, Database, cause_name, is_read_only_error
from core.emails.sender import EmailSender
from core.inbox.missed_webhooks import EventReader
from core.organizations.validation import ORGANIZATION_ID_PATTERN
from core.ports.inventory import Inventory
from core.ports.spec import Provider
from core.reconcile import backoff
from core.reconcile.reconciler import Reconciler, ReconcileResult
from core.webhooks.dispatcher import Dispatcher
from tasks import queue, result_texts
from tasks.routing import SYNC_TASK_BY_PROVIDER, SyncRequest

if TYPE_CHECKING:
    from celery.worker.request import _InfoDict  # only the published types have it

log = structlog.get_logger()

# A worker keeps its slot this long after the database was unavailable, which limits the tries whatever the backlog.
DATABASE_RETRY_PAUSE_SECONDS = 1.0
# About a minute in all. Tries while the database is unavailable do not count.
MAX_UNEXPECTED_TRIES = 8
# Of a message that failed unexpectedly: how often, and the seconds since 1970 when it did so first.
UNEXPECTED_TRIES_HEADER = "unexpected_tries"
FIRST_FAILED_HEADER = "first_failed_at"
_MAX_FAILING_SECONDS = 86_400
_MAX_BACKOFF_STEPS = 64  # Celery computes a power of two before it looks at the maximum


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What the tasks of one process work with. It is opened once, after the fork.

    ``email_sender`` is None without an SMTP server, ``webhook_dispatcher`` without a signing secret.
    ``operations_email`` gets the operations digest. ``allowed_event_sources`` None: all are allowed. ``inventories``
    are for the commands that adopt what is at the providers.
    """

    database: Database
    reconciler: Reconciler
    catalog: Catalog
    clock: Clock
    close: Callable[[], None]
    history_retention: timedelta
    event_reader: EventReader
    check_lago_every: timedelta
    email_sender: EmailSender | None = None
    operations_email: str | None = None
    webhook_dispatcher: Dispatcher | None = None
    allowed_event_sources: frozenset[str] | None = None
    inventories: Mapping[Provider, Inventory] = field(default_factory=dict)


class BillingApp(Celery):
    """A Celery app that opens its runtime when the first task needs it."""

    def __init__(self, *args: Any, open_runtime: Callable[[], Runtime], **options: Any) -> None:  # noqa: ANN401 - Celery's own
        super().__init__(*args, **options)
        self._open_runtime = open_runtime
        self.next_org_to_observe = ""
        """Where this process goes on to look for links that are to be observed; each process walks them all."""
        self._runtime: Runtime | None = None
        self._runtime_lock = threading.Lock()

    @property
    def runtime(self) -> Runtime:
        with self._runtime_lock:
            if self._runtime is None:
                self._runtime = self._open_runtime()
            return self._runtime

    def close_runtime(self) -> None:
        with self._runtime_lock:
            if self._runtime is not None:
                self._runtime.close()
            self._runtime = None


class LinkWaitsError(Ignore):
    """Ends a task that may not do its work now. Celery acknowledges the message and reports nothing.

    ``IdsOnlyRequest`` reports the state WAITING.
    """


class IdsOnlyRequest(Request):
    """What workers show Flower and the log of a message: the organization ids in it, and nothing else."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - Celery's own
        super().__init__(*args, **options)
        ids = _format_org_ids(self.args)
        self._argsrepr, self._kwargsrepr = ids, "{}"
        self.request_dict.update(argsrepr=ids, kwargsrepr="{}")

    def info(self, safe: bool = True) -> _InfoDict:  # noqa: ARG002, FBT001, FBT002 - Celery's signature
        """What ``inspect`` and Flower's worker page show of the messages that a worker has. Always ids only."""
        return super().info(safe=True)

    def on_failure(self, exc_info: ExceptionInfo, send_failed_event: bool = True, return_ok: bool = False) -> None:  # noqa: FBT001, FBT002 - Celery's signature
        """Celery sends no event for a task that is ignored, so Flower would show it as running for good."""
        super().on_failure(exc_info, send_failed_event, return_ok)
        error = getattr(exc_info.exception, "exc", None)  # the exception that was raised, in Celery's wrapper
        if isinstance(error, LinkWaitsError):
            self.send_event("task-waiting", result=str(error))


def _format_org_ids(arguments: Sequence[object] | None) -> str:
    org_ids = [
        value for value in arguments or () if isinstance(value, str) and ORGANIZATION_ID_PATTERN.fullmatch(value)
    ]
    return "(" + ", ".join(org_ids) + ")"


class _RetryWithRepr(Protocol):
    """The options that Celery passes on to the message of a retry; its published types have fewer."""

    def retry(  # noqa: PLR0913 - Celery's
        self,
        *,
        exc: Exception,
        countdown: float,
        throw: bool,
        argsrepr: str,
        kwargsrepr: str,
        headers: dict[str, Any] | None,
    ) -> Retry: ...


class LinkParkedError(Exception):
    """Marks the task as failed in Flower. The link waits for an operator, who finds it with ``billing-sync parked``."""


class SyncFailedError(Exception):
    """Marks the task as failed in Flower. The sweep starts the next attempt."""


class UnexpectedTaskError(Exception):
    """Marks the task as failed in Flower. Its message is stored for an operator."""


class TaskRetryError(Exception):
    """Shown in Flower as the reason of a retry."""


class BillingTask(Task[Any, Any]):
    """Base of all tasks. Attempts are counted in the row, so Celery itself never gives up."""

    abstract = True
    Request = "tasks.base:IdsOnlyRequest"
    max_retries = None
    ignore_result = True
    throws = (LinkParkedError, SyncFailedError, UnexpectedTaskError)

    @property
    def runtime(self) -> Runtime:
        app = self.app
        if not isinstance(app, BillingApp):
            message = "billing tasks run in an app built by worker.wiring.celery_app"
            raise TypeError(message)
        return app.runtime

    @contextmanager
    def with_database_retry(self) -> Iterator[None]:
        """Retry the message for as long as the database is unavailable: it may be stored nowhere else.

        It is retried too after repeated conflicts with others who insert the same (``service_events``). The worker
        waits before it sends the retry: its slot takes no other message meanwhile, so a backlog stays in the broker.
        """
        try:
            yield
        except (*DATABASE_UNAVAILABLE_ERRORS, IntegrityError) as error:
            is_conflict = isinstance(error, IntegrityError)
            if is_conflict and self._unexpected_tries >= MAX_UNEXPECTED_TRIES:
                raise
            # Only the class: a database's own text may repeat what was sent to it.
            state = "read-only" if is_read_only_error(error) else "unavailable or busy"
            reason = f"the database is {state} ({cause_name(error)})"
        else:
            return
        time.sleep(DATABASE_RETRY_PAUSE_SECONDS)
        raise self.retry_in(reason, self._backoff(), is_unexpected=is_conflict) from None

    @contextmanager
    def giving_back(self, park: Callable[[str], object] | None = None) -> Iterator[None]:
        """For work whose only record is the message: an error that nobody expects sends the message again, later.

        After ``MAX_UNEXPECTED_TRIES``, ``park`` stores the message with a reason. If that fails too, or without
        ``park``, the message is sent again for as long as it takes. No reason has the text of an error: it may repeat
        what was sent.
        """
        try:
            yield
        except Exception as error:
            if isinstance(error, TaskPredicate):
                raise
            name, tries = type(error).__name__, self._unexpected_tries + 1
            log.error("unexpected_error", error=name, at=raised_at(error), tries=tries)  # noqa: TRY400 - no text of it
        else:
            return
        if park is None or tries <= MAX_UNEXPECTED_TRIES:
            reason = f"unexpected error ({name})"
            raise self.retry_in(reason, self._backoff(), is_unexpected=True)
        with self.giving_back():
            park(f"unexpected error {name}; the log event unexpected_error says where")
        message = f"{name}; the message is stored as rejected"
        raise UnexpectedTaskError(message)

    def _backoff(self) -> float:
        most = int(backoff.MAX_QUEUE_DELAY_SECONDS)
        steps = min(self.request.retries, _MAX_BACKOFF_STEPS)
        return max(0.2, get_exponential_backoff_interval(1, steps, most, full_jitter=True))

    @property
    def _unexpected_tries(self) -> int:
        tries = (self.request.headers or {}).get(UNEXPECTED_TRIES_HEADER)
        return tries if type(tries) is int and tries > 0 else 0  # any program may write the header

    @property
    def first_failed_at(self) -> datetime:
        """When the message failed unexpectedly for the first time; now, if it has not or says so in no usable form."""
        now, seconds = self.runtime.clock(), (self.request.headers or {}).get(FIRST_FAILED_HEADER)
        age = now.timestamp() - seconds if isinstance(seconds, int | float) else 0.0
        return now - timedelta(seconds=age) if 0 < age < _MAX_FAILING_SECONDS else now

    def _next_headers(self) -> dict[str, Any]:
        """Of the message that is sent again after an unexpected failure."""
        first = {} if self._unexpected_tries else {FIRST_FAILED_HEADER: time.time()}
        return {**(self.request.headers or {}), **first, UNEXPECTED_TRIES_HEADER: self._unexpected_tries + 1}

    def retry_in(self, reason: str | None, seconds: float, *, is_unexpected: bool = False) -> Exception:
        """The exception that ends this run and sends the message again. If that fails, the broker keeps this message.

        While another error is handled, raise it ``from None``: a traceback in Flower would show that error too.
        """
        try:
            return cast("_RetryWithRepr", self).retry(
                exc=TaskRetryError(reason),
                countdown=queue.countdown(self.app, seconds),
                throw=False,
                argsrepr=_format_org_ids(self.request.args),
                kwargsrepr="{}",
                headers=self._next_headers() if is_unexpected else self.request.headers,
            )
        except Reject as publish_rejected:
            # Only the class here too: Redis repeats what it rejects.
            return Reject(type(publish_rejected.args[0]).__name__, requeue=True)

    def reconcile(self, provider: Provider, org_id: str, *, bulk: bool) -> str:
        """Reconcile once, then do what the result says; returns what Flower shows as the result of a success.

        Raises Celery's ``Retry``, ``LinkWaitsError``, ``SyncFailedError`` or ``LinkParkedError``.
        """
        with self.with_database_retry():
            result = self.runtime.reconciler.run(org_id, provider, bulk=bulk)
        for other_provider in result.also_requeue:
            queue.send(self.app, SyncRequest(SYNC_TASK_BY_PROVIDER[other_provider], org_id, bulk))
        if result.requeue_after is not None and backoff.has_message(result.requeue_after):
            if result.kind == "retry":
                raise self.retry_in(result.error, result.requeue_after)
            queue.send(self.app, SyncRequest(SYNC_TASK_BY_PROVIDER[provider], org_id, bulk, result.requeue_after))
        text = result_texts.describe(provider, result)
        match result:
            case ReconcileResult(kind="parked" | "on_hold"):
                raise LinkParkedError(text)
            case ReconcileResult(kind="retry") | ReconcileResult(error=str()):
                raise SyncFailedError(text)
            case ReconcileResult(kind="waiting"):
                log.info(
                    "link_waits",
                    org_id=org_id,
                    provider=provider,
                    reason=result.reason,
                    seconds=result.requeue_after,
                )
                raise LinkWaitsError(text)
        return text
