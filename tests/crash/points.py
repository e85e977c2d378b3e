"""Points at which one of our processes may be killed, observed from within it and without changes to our code.

Each point is an official hook of a library: SQLAlchemy's events around a commit, httpcore's log of requests, and
Celery's signals around a publish and a task. Its name contains our function on the stack, so each new call is a new
point. At the chosen point the process kills itself, so no handler runs and nothing is flushed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from celery import signals
from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session

OURS = ("core.", "providers.", "tasks.", "worker.")
# Modules that only pass calls on: the point is named after their caller.
CARRIERS = {
    "providers.transport.inline_retry",
    "core.db.database",
    "providers.transport.deadline",
    "providers.lago.client",
    "providers.stripe.transport",
    "providers.stripe.client",
    "tasks.queue",
}
# A thread of its own, which has no part in a change.
BESIDE_CHANGES = {"worker.processes.heartbeat"}
CARRYING_METHODS = {"core.reconcile.attempt:SyncAttempt._write"}
WHOSE_TASK = {"sync_to_stripe": "stripe", "sync_to_lago": "lago"}

BEFORE_COMMIT, AFTER_COMMIT = "before commit", "after commit"
BEFORE_SENDING, AFTER_ANSWER = "before sending", "after the response"
BEFORE_PUBLISH, AFTER_PUBLISH = "before publishing", "after publishing"
TASK_STARTED, TASK_DONE = "task started", "task done, not acknowledged"
# The sandbox observes these two (``killer.py``).
NOT_DONE, NOT_ANSWERED = "request received, not done", "request done, no response sent"


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """``who`` is the provider whose task it is, if any. ``number`` 2 is the second time that a process passes it."""

    moment: str
    site: str
    who: str = ""
    number: int = 1

    @property
    def name(self) -> str:
        return f"{self.moment} · {self.site}{f' ({self.who})' if self.who else ''}"

    def line(self) -> str:
        return "\t".join((self.moment, self.site, self.who, str(self.number)))

    @classmethod
    def of(cls, line: str) -> Point:
        moment, site, who, number = line.rstrip("\n").split("\t")
        return cls(moment, site, who, int(number))


@dataclass
class Tripwire:
    """Writes every point that is passed to ``trace``, in order, and kills the process at ``deadly``."""

    trace: Path
    deadly: Point | None
    _passed: Counter[Point] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def pass_by(self, moment: str, site: str | None) -> None:
        if site is None:
            return
        with self._lock:
            name = Point(moment, site, _whose())
            self._passed[name] += 1
            point = Point(moment, site, name.who, self._passed[name])
            # The file is closed each time, so that its lines survive the kill.
            with self.trace.open("a", encoding="utf-8") as file:
                file.write(point.line() + "\n")
            if point == self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)

    def lay(self) -> None:
        """Install the hooks. Call this once, in a process that has opened nothing yet."""
        self._around_commits()
        self._around_requests()
        self._around_messages()

    def _around_commits(self) -> None:
        @event.listens_for(Engine, "commit")
        def before(connection: Connection) -> None:
            if not connection.get_execution_options().get("read_only"):
                self.pass_by(BEFORE_COMMIT, _site(lines=True))

        @event.listens_for(Session, "after_commit")
        def after(session: Session) -> None:
            if not session.get_bind().get_execution_options().get("read_only"):
                self.pass_by(AFTER_COMMIT, _site(lines=True))

    def _around_requests(self) -> None:
        pass_by = self.pass_by

        class Wire(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                text = str(record.msg)
                if text.startswith("send_request_headers.started"):
                    pass_by(BEFORE_SENDING, _site())
                elif text.startswith("receive_response_body.complete"):
                    pass_by(AFTER_ANSWER, _site())

        logger = logging.getLogger("httpcore.http11")
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        logger.addHandler(Wire())

    def _around_messages(self) -> None:
        def before_publish(**_: object) -> None:
            self.pass_by(BEFORE_PUBLISH, _site())

        def after_publish(**_: object) -> None:
            self.pass_by(AFTER_PUBLISH, _site())

        def started(sender: object = None, **_: object) -> None:
            self.pass_by(TASK_STARTED, getattr(sender, "name", None))

        def done(sender: object = None, **_: object) -> None:
            self.pass_by(TASK_DONE, getattr(sender, "name", None))

        signals.before_task_publish.connect(before_publish, weak=False)
        signals.after_task_publish.connect(after_publish, weak=False)
        signals.task_prerun.connect(started, weak=False)
        signals.task_postrun.connect(done, weak=False)


def _frames() -> Iterator[tuple[str, FrameType]]:
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - the documented way to read the own stack
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith(OURS):
            yield module, frame
        frame = frame.f_back


def _site(*, lines: bool = False) -> str | None:
    """Our function on the stack, such as ``core.reconcile.lease:acquire``, or None.

    With ``lines``, the line of its ``with`` is added, since a function may have several transactions:
    ``worker.processes.relay:Relay.relay_once:9``.
    """
    carried = False
    for module, frame in _frames():
        name = f"{module}:{frame.f_code.co_qualname.split('.<locals>')[0]}"
        if module in BESIDE_CHANGES:
            return None
        if name in CARRYING_METHODS:
            carried = True
        elif module not in CARRIERS:
            return f"{name}:{frame.f_lineno}" if lines and not carried else name
    return None


def _whose() -> str:
    for module, frame in _frames():
        if module == "tasks.provider_sync" and frame.f_code.co_name in WHOSE_TASK:
            return WHOSE_TASK[frame.f_code.co_name]
    return ""
