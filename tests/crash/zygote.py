"""A parent process that has imported everything and forks the console script on request, so that a start is fast.

It reads a JSON line (``Order``) and writes the child's process id. The child runs ``billing-sync`` with the words,
environment and folder of the order, with its tripwire installed. If the order has messages, the child sends them when
its worker starts, as a service in the same process would. It ends as any process does, or by SIGKILL.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path

from celery import Celery, signals

from tests.crash.points import Point, Tripwire

# Modules that the first task would import; they are imported once, before any fork.
PRELOADED = (
    "alembic.command",
    "celery.app.amqp",
    "celery.bin.celery",
    "celery.concurrency.thread",
    "celery.events.state",
    "celery.worker.consumer",
    "celery.worker.control",
    "kombu.transport.memory",
    "kombu.transport.pyamqp",
    "kombu.transport.redis",
    "psycopg",
    "stripe.params",
    "tasks.provider_sync",
    "tasks.service_events",
    "tasks.sweep",
    "worker.cli",
    "worker.cli.app",
    "worker.cli.error_messages",
    "worker.cli.run",
    "worker.cli.status",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """``deadly`` is the point at which the child kills itself, as ``Point.line()``; it needs a ``trace``."""

    words: list[str]
    environment: dict[str, str]
    folder: str
    log: str
    trace: str | None = None
    deadly: str | None = None
    messages: list[dict[str, object]] = field(default_factory=list)

    def line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


def main() -> None:
    for module in PRELOADED:
        importlib.import_module(module)
    children: set[int] = set()
    for line in sys.stdin:
        order = Order(**json.loads(line))
        child = os.fork()
        if child == 0:
            _become(order)
        children = {each for each in children if os.waitpid(each, os.WNOHANG) == (0, 0)} | {child}
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
    # The process that sent the orders has ended or was killed, so no child may be left.
    for each in children:
        os.kill(each, signal.SIGKILL)


def _become(order: Order) -> None:
    os.setsid()
    log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(number, target)
    os.chdir(order.folder)
    os.environ.clear()
    os.environ.update(order.environment)
    sys.argv = ["billing-sync", *order.words]
    if order.trace is not None:
        Tripwire(Path(order.trace), Point.of(order.deadly) if order.deadly else None).lay()
    if order.messages:
        _send_when_ready(order.messages)
    importlib.import_module("worker.cli").main()


def _send_when_ready(messages: list[dict[str, object]]) -> None:
    def ready(sender: Celery, **_: object) -> None:
        threading.Thread(target=_send, args=(sender, messages), name="sender", daemon=True).start()

    # The only signal that a worker within another program sends too. By then its tasks and queues are declared.
    signals.import_modules.connect(ready, weak=False)


def _send(app: Celery, messages: list[dict[str, object]]) -> None:
    for message in messages:
        app.send_task("events.receive", args=[message], argsrepr="()")


if __name__ == "__main__":
    main()
