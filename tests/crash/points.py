"""Where a process of ours may be killed, seen from inside it, without a word of this in the code under test.

Each point is an official seam of a library: SQLAlchemy's events around a commit, httpcore's log of what is on the wire,
Celery's signals around a publish and a task. Its name holds the function of ours that is on the stack, so a call that
is added tomorrow is a point tomorrow. At the chosen one the process kills itself: no handler, no flush, no goodbye.
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
# They carry what others do: the caller is who did it.
CARRIERS = {
    "providers.transport.inline_retry",
    "core.db.database",
    "providers.transport.deadline",
    "providers.lago.client",
    "providers.stripe.transport",
    "providers.stripe.client",
    "tasks.queue",
}
CARRYING_METHODS = {"core.reconcile.attempt:SyncAttempt._write"}
WHOSE_TASK = {"sync_to_stripe": "stripe", "sync_to_lago": "lago"}

BEFORE_COMMIT, AFTER_COMMIT = "before commit", "after commit"
BEFORE_SENDING, AFTER_ANSWER = "before sending", "after the answer"
BEFORE_PUBLISH, AFTER_PUBLISH = "before publishing", "after publishing"
TASK_TAKEN, TASK_DONE = "task taken", "task done, not acknowledged"
# These two are the sandbox's to see (``watching.py``).
NOT_DONE, NOT_ANSWERED = "received, not done", "done, not answered"


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """``who``: the biller whose task it is, if any. ``number``: the how manieth time this process comes by."""

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
    """Writes every point passed to ``trace``, in order, and kills the process at ``deadly``."""

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
            # Closed each time: what is written must be there after the kill.
            with self.trace.open("a", encoding="utf-8") as file:
                file.write(point.line() + "\n")
            if point == self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)

    def lay(self) -> None:
        """Once, in a process that has opened nothing yet."""
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
                said = str(record.msg)
                if said.startswith("send_request_headers.started"):
                    pass_by(BEFORE_SENDING, _site())
                elif said.startswith("receive_response_body.complete"):
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

        def taken(sender: object = None, **_: object) -> None:
            self.pass_by(TASK_TAKEN, getattr(sender, "name", None))

        def done(sender: object = None, **_: object) -> None:
            self.pass_by(TASK_DONE, getattr(sender, "name", None))

        signals.before_task_publish.connect(before_publish, weak=False)
        signals.after_task_publish.connect(after_publish, weak=False)
        signals.task_prerun.connect(taken, weak=False)
        signals.task_postrun.connect(done, weak=False)


def _frames() -> Iterator[tuple[str, FrameType]]:
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - the documented way to one's own stack
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith(OURS):
            yield module, frame
        frame = frame.f_back


def _site(*, lines: bool = False) -> str | None:
    """The function of ours that does it, ``core.reconcile.lease:acquire``; None: not one of ours.

    ``lines``: with that of its ``with``, a function may have several: ``worker.processes.relay:Relay.relay_once:9``.
    """
    carried = False
    for module, frame in _frames():
        name = f"{module}:{frame.f_code.co_qualname.split('.<locals>')[0]}"
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
