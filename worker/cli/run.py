"""The long-running commands. Each opens what it needs before it says that it runs, and ends cleanly on SIGTERM.

The worker finishes what it runs and gives back what it only holds; the relay finishes its batch. ``up`` may be killed
at any moment: the database is the truth, and the next start brings everything home.

``up`` and ``sandbox`` load their servers when they run: a worker would else hold 14 MB that it never uses.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from celery.apps.beat import Beat
from celery.beat import Service

from tasks.base import BillingApp
from tasks.routing import QUEUES
from worker.cli import descriptions, output, resources
from worker.cli.exit_codes import FailedError, UsageError
from worker.config import api as api_settings
from worker.config import settings as settings_of
from worker.config.settings import Settings
from worker.processes.relay import Relay
from worker.wiring import logging
from worker.wiring.celery_app import build
from worker.wiring.email import FOLDER
from worker.wiring.runtime import start_accounts

LOOK_EVERY = 1.0  # seconds
# Flower can shut workers down and run tasks: here it is a window, for this machine alone unless told otherwise.
FLOWER_OPTIONS = ("--address=127.0.0.1", "--read-only", "--purge-offline-workers=60")


def up() -> None:
    """Run everything in this process: worker, relay, sweep, the API, and a sandbox where no biller is named."""
    from worker.processes.embedded import Embedded
    from worker.wiring import api as api_wiring

    settings, api = settings_of.read(), api_settings.read()
    logging.configure(_quiet(settings))
    with (
        resources.alone(settings.data_dir),
        stop_asked() as stopping,
        Embedded(settings) as running,
        api_wiring.api(running.settings, api, running.app.runtime.sync.gates.quota) as served,
    ):
        running.hear_the_sandbox(served.url)
        output.show(*_welcome(settings, running.sandbox_url, served.url))
        while not stopping.wait(LOOK_EVERY):
            if not (running.alive and served.alive):
                message = "a part of it ended by itself: see the log above, then start it again; nothing is lost"
                raise FailedError(message)


def sandbox(
    *,
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 inside a container.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 8700,
    no_limits: Annotated[bool, typer.Option("--no-limits", help="Never answer 429.")] = False,
    state: Annotated[
        Path | None, typer.Option(help="File that keeps its objects; without it they are forgotten.")
    ] = None,
) -> None:
    """Run the stand-ins of Stripe and Lago alone, for tests."""
    from sandbox.server import Sandbox

    logging.configure(_quiet(settings_of.read()))
    with stop_asked() as stopping, Sandbox(host, port, limits=not no_limits, state=state).start() as served:
        output.show(
            f"The sandbox listens on {served.url}",
            f"  STRIPE_API_BASE={served.url}  STRIPE_SECRET_KEY=sk_test_…   (any key of that form)",
            f"  LAGO_API_URL={served.url}  LAGO_API_KEY=…   (any key)",
            f"  {served.url}/sandbox/state shows what it holds. Stop it with Ctrl-C.",
        )
        stopping.wait()


def run_worker(
    *,
    concurrency: Annotated[int | None, typer.Option(min=1, max=64, help="Threads; else WORKER_CONCURRENCY.")] = None,
    queues: Annotated[
        str | None,
        typer.Option(help=f"Of {', '.join(QUEUES)}; commas between. All if left out."),
    ] = None,
) -> None:
    """Run one Celery worker process; run as many as you need."""
    settings = resources.with_broker("worker")
    chosen = _queues(queues)
    if concurrency is not None:
        settings = settings.model_copy(update={"worker_concurrency": concurrency})
    app = _opened(settings)
    start_accounts(app.runtime)
    worker = app.Worker(
        hostname=f"worker-{os.getpid()}@{socket.gethostname()}",
        pool_cls="threads",
        concurrency=settings.worker_concurrency,
        queues=chosen,
        task_events=True,
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    )
    worker.start()
    app.close_runtime()
    raise typer.Exit(worker.exitcode or 0)


def relay() -> None:
    """Hand committed events to the broker; run one, or several."""
    settings = resources.with_broker("relay")
    app = _opened(settings)
    runs = Relay(app, app.runtime.database)
    try:
        with stop_asked(runs.stop):
            output.show("The relay runs. Stop it with Ctrl-C.")
            runs.run()
    finally:
        app.close_runtime()


def beat() -> None:
    """Ring for the sweep every few seconds; one is enough, a second does no harm."""
    settings = resources.with_broker("beat")
    logging.configure(settings)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    app = build(settings)
    _Beat(app=app, schedule=str(settings.data_dir / "celerybeat-schedule"), quiet=True).run()


class _Beat(Beat):
    """Its schedule is open before it can be told to stop: what stops it would else open it in the midst of opening."""

    def install_sync_handler(self, service: Service) -> None:
        _ = service.scheduler
        super().install_sync_handler(service)


def flower(context: typer.Context) -> None:
    """Run Flower on this broker; what follows goes to Flower, e.g. --port=5555 --basic-auth=user:password."""
    settings = resources.with_broker("flower")
    build(settings).start(["flower", *FLOWER_OPTIONS, *context.args])


@contextmanager
def stop_asked(then: Callable[[], None] | None = None) -> Iterator[threading.Event]:
    """Set on SIGINT or SIGTERM, from inside the main thread; ``then`` is called as well."""
    asked = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        asked.set()
        if then is not None:
            then()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _quiet(settings: Settings) -> Settings:
    """A person looks on: only what is wrong is logged, unless LOG_LEVEL asks for more."""
    return (
        settings if "log_level" in settings.model_fields_set else settings.model_copy(update={"log_level": "WARNING"})
    )


def _opened(settings: Settings) -> BillingApp:
    """The app with its runtime open: what is missing is said now, not at the first task."""
    logging.configure(settings)
    app = build(settings)
    resources.make_folder(settings)
    app.runtime  # noqa: B018 - opens it
    return app


def _queues(given: str | None) -> list[str] | None:
    if given is None:
        return None
    chosen = [word.strip() for word in given.split(",") if word.strip()]
    unknown = [word for word in chosen if word not in QUEUES]
    if unknown or not chosen:
        message = f"--queues: {', '.join(unknown) or 'nothing'} is no queue; choose from {', '.join(QUEUES)}"
        raise UsageError(message)
    return chosen


def _mails(settings: Settings) -> str:
    if settings.smtp_host is not None:
        return settings.smtp_host
    return f"{settings.data_dir / FOLDER}   (one file each)" if settings.is_embedded else "wait until SMTP_HOST is set"


def _welcome(settings: Settings, sandbox_url: str | None, api_url: str) -> list[str]:
    folder = settings.data_dir
    billers = (
        f"sandbox   {sandbox_url}   (stand-ins of Stripe and Lago; {sandbox_url}/sandbox/state shows what they hold)"
        if sandbox_url
        else f"billers   {settings.stripe_api_base} and {settings.lago_api_url}"
    )
    create = "from core.org_manager import org_manager; org_manager.create_organization('Acme')"
    return [
        "billing-sync is up. Stop it with Ctrl-C; nothing is lost, whatever ends it.",
        f"  {billers}",
        f"  API       {api_url}   ({api_url}/docs describes it; `{descriptions.typed()} keys create` opens it)",
        f"  data      {folder.resolve()}",
        f"  mails     {_mails(settings)}",
        "Next, in another terminal and this folder:",
        f"  {descriptions.typed()} import organizations.json org_users.json",
        f'  {descriptions.typed("python")} -c "{create}"',
        f"  {descriptions.typed()} orgs",
        f"  {descriptions.typed()} status Acme",
    ]
