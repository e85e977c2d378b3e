"""The long-running commands. Each opens its connections before it reports that it runs, and ends cleanly on SIGTERM.

The worker finishes its running tasks and returns the messages it has not started. The relay finishes its batch. ``up``
may be killed at any time: the database is the source of truth, and the next start completes the work.

``up`` and ``sandbox`` import their servers when they run, which saves 14 MB in a worker.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from logging import ERROR, getLogger
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from celery.apps.beat import Beat
from celery.beat import Service

from core.db.database import UnreachableDatabaseError
from tasks.base import BillingApp
from tasks.routing import QUEUES
from worker.cli import command_line, descriptions, output, resources
from worker.cli.exit_codes import CommandFailedError, UsageError
from worker.config import api as api_settings
from worker.config import settings as settings_of
from worker.config.settings import Settings, SettingsError
from worker.processes import metrics_server
from worker.processes.heartbeat import heartbeat
from worker.processes.loop_watch import LoopWatch, WatchedScheduler, WorkerLoopWatch
from worker.processes.queue_depths import QueueDepths
from worker.processes.relay import Relay
from worker.wiring import broker_probe, logging
from worker.wiring.celery_app import build, keep_our_logging
from worker.wiring.database import connect, wait_until_ready
from worker.wiring.email import EMAIL_FOLDER_NAME
from worker.wiring.runtime import check_accounts

UP_CHECK_SECONDS = 1.0  # seconds
UP_STOP_SECONDS = 4.0  # a call to a provider that hangs takes longer; the next start repeats it
# Flower can shut down workers and run tasks. Here it is read-only, and only for this machine unless options change it.
FLOWER_OPTIONS = ("--address=127.0.0.1", "--read-only", "--purge-offline-workers=60")
FLOWER_LOGIN_OPTIONS = ("--basic-auth", "--basic_auth", "--auth")  # ``--auth`` is a sign-in by OAuth
FLOWER_USER = "flower"


def up() -> None:
    """Run everything in this process: worker, relay, sweep, the API, and a sandbox if no provider is configured."""
    from worker.processes.embedded import EmbeddedProcess
    from worker.wiring import api as api_wiring

    settings, api = settings_of.read(), api_settings.read()
    resources.warn_of_weak_tls(settings)
    logging.configure(_quiet_settings(settings))
    wait_for_database(settings, for_writes=True)
    with (
        resources.single_instance(settings.data_dir),
        stop_on_signal() as stopping,
        metrics_server.serve(settings, "up") as metrics,
        EmbeddedProcess(settings) as embedded,
        heartbeat(embedded.app.runtime.database, "up"),
        resources.sandbox_address(settings.data_dir, embedded.sandbox_url),
        api_wiring.serve(embedded.settings, api, embedded.app.runtime.reconciler.request_gates.rate_limiter) as server,
    ):
        metrics.register(QueueDepths(embedded.app))
        embedded.receive_sandbox_webhooks(server.url)
        output.show(*_welcome_lines(settings, embedded.sandbox_url, server.url))
        while not stopping.wait(UP_CHECK_SECONDS):
            if not (embedded.is_alive and server.is_alive):
                message = "a component stopped unexpectedly: see the log above, then start it again; nothing is lost"
                raise CommandFailedError(message)
        _exit_within(UP_STOP_SECONDS)


def sandbox(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 inside a container.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 for any free one.")] = 8700,
    no_limits: Annotated[bool, typer.Option("--no-limits", help="Never respond 429.")] = False,
    state: Annotated[
        Path | None, typer.Option(help="File that stores its objects; without it they are lost at exit.")
    ] = None,
) -> None:
    """Run only the Stripe and Lago sandbox, for tests."""
    from sandbox.server import Sandbox

    logging.configure(_quiet_settings(settings_of.read()))
    with stop_on_signal() as stopping, Sandbox(host, port, limits=not no_limits, state_file=state).start() as server:
        output.show(
            f"The sandbox listens on {server.url}",
            f"  STRIPE_API_BASE={server.url}  STRIPE_SECRET_KEY=sk_test_…   (any key of that form)",
            f"  LAGO_API_URL={server.url}  LAGO_API_KEY=…   (any key)  LAGO_STRIPE_PROVIDER_CODE=stripe_main",
            f"  {server.url}/sandbox/state shows its objects. Stop it with Ctrl-C.",
        )
        stopping.wait()


def run_worker(
    *,
    concurrency: Annotated[
        int | None, typer.Option(min=1, max=64, help="Number of threads; default: WORKER_CONCURRENCY.")
    ] = None,
    queues: Annotated[
        str | None,
        typer.Option(help=f"Comma-separated list of {', '.join(QUEUES)}; default: all."),
    ] = None,
) -> None:
    """Run one Celery worker process; run as many as you need."""
    settings = _settings_with_usable_broker("worker")
    chosen = _checked_queues(queues)
    if concurrency is not None:
        settings = settings.model_copy(update={"worker_concurrency": concurrency})
    app = _open_app(settings)
    database = app.runtime.database
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
    with metrics_server.serve(settings, "worker"), heartbeat(database, "worker", loop=WorkerLoopWatch(worker)):
        check_accounts(app.runtime)
        worker.start()
    app.close_runtime()
    database.close()  # Celery closed the runtime before the last heartbeat
    raise typer.Exit(worker.exitcode or 0)


def relay() -> None:
    """Publish committed events to the broker; run one or several."""
    settings = _settings_with_usable_broker("relay")
    app = _open_app(settings)
    process = Relay(app, app.runtime.database)
    try:
        with (
            stop_on_signal(process.stop),
            metrics_server.serve(settings, "relay") as metrics,
            heartbeat(app.runtime.database, "relay"),
        ):
            metrics.register(QueueDepths(app))
            output.show("The relay runs. Stop it with Ctrl-C.")
            process.run()
    finally:
        app.close_runtime()


def beat() -> None:
    """Schedule the periodic jobs; one is enough, a second does no harm."""
    settings = _settings_with_usable_broker("beat")
    logging.configure(settings)
    keep_our_logging()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    app = build(settings)
    database = connect(settings, pool_size=1)
    process = _Beat(app, settings.data_dir / "celerybeat-schedule")
    try:
        # Beat goes on without a database, but not on one that no process can use.
        with suppress(UnreachableDatabaseError):
            database.obstacle()
        with metrics_server.serve(settings, "beat"), heartbeat(database, "beat", loop=process.watch):
            process.run()
    finally:
        database.close()


class _Beat(Beat):
    """Opens its schedule before a signal can stop it, and closes it once: when its loop ends.

    Celery's own handler closes it in the middle of a tick. Its SystemExit may get lost in the code that it interrupts,
    and the next tick then fails. So the loop is also told to end.
    """

    def __init__(self, app: BillingApp, schedule: Path) -> None:
        scheduler = f"{WatchedScheduler.__module__}:{WatchedScheduler.__name__}"
        super().__init__(app=app, schedule=str(schedule), scheduler=scheduler, quiet=True)
        self.watch = LoopWatch()

    def install_sync_handler(self, service: Service) -> None:
        scheduler = service.scheduler
        if isinstance(scheduler, WatchedScheduler):
            scheduler.on_progress = self.watch.mark

        def stop(_number: int, _frame: FrameType | None) -> None:
            service.stop()
            raise SystemExit

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)


def flower(context: typer.Context) -> None:
    """Run Flower on this broker, read-only and with a password; further arguments go to Flower, e.g. --port=5555."""
    settings = resources.settings_with_broker("flower")
    keep_our_logging()
    # Not the arguments of the process, so no list of processes shows the password.
    options = [*FLOWER_OPTIONS, *_flower_inspection(settings), *_flower_login(settings, context.args), *context.args]
    build(settings).start(["flower", *options])


def _flower_inspection(settings: Settings) -> list[str]:
    """Flower asks all workers at its start. Without remote control none answers, which is no reason for a warning."""
    if settings.celery_remote_control:
        return []
    getLogger("flower.inspector").setLevel(ERROR)
    return ["--enable-events=false"]


def _flower_login(settings: Settings, arguments: list[str]) -> list[str]:
    """The option that makes Flower ask for a password, unless the arguments name another sign-in."""
    if "FLOWER_AUTH" in os.environ or any(word.partition("=")[0] in FLOWER_LOGIN_OPTIONS for word in arguments):
        return []
    if settings.flower_basic_auth is not None:
        return [f"--basic-auth={settings.flower_basic_auth.get_secret_value()}"]
    password = secrets.token_urlsafe(18)
    output.show(
        f"Flower asks for the user {FLOWER_USER} and the password {password}",
        "It is valid until Flower stops. Set FLOWER_BASIC_AUTH=user:password to choose your own.",
    )
    return [f"--basic-auth={FLOWER_USER}:{password}"]


@contextmanager
def stop_on_signal(on_stop: Callable[[], None] | None = None) -> Iterator[threading.Event]:
    """An event that is set on SIGINT or SIGTERM, when ``on_stop`` is called too. For the main thread."""
    stopping = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopping.set()
        if on_stop is not None:
            on_stop()

    previous_handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


def wait_for_database(settings: Settings, *, for_writes: bool) -> None:
    """A signal meanwhile ends the process with exit code 0, as later. Raises ``DatabaseError`` as the wait does.

    Process 1 of a container ignores a signal for which it has no handler.
    """
    with stop_on_signal() as stopping:
        wait_until_ready(settings, for_writes=for_writes, stopping=stopping)
    if stopping.is_set():
        raise typer.Exit


def _exit_within(seconds: float) -> None:
    """End the process with exit code 0 after this time, even if a thread still waits for a response."""
    timer = threading.Timer(seconds, os._exit, [0])
    timer.daemon = True
    timer.start()


def _quiet_settings(settings: Settings) -> Settings:
    """For commands on a terminal: log only warnings and errors, unless LOG_LEVEL is set."""
    return (
        settings if "log_level" in settings.model_fields_set else settings.model_copy(update={"log_level": "WARNING"})
    )


def _settings_with_usable_broker(command: str) -> Settings:
    """A broker that does not respond is waited for, and a sentence says so if TLS is why.

    Raises ``SettingsError`` if its queues are not as ours must be.
    """
    settings = resources.settings_with_broker(command)
    state = broker_probe.probe(settings)
    if state.tls_problem is not None:
        command_line.print_error(f"TLS with {state.address} fails: {state.tls_problem}; {broker_probe.TLS_ADVICE}")
    if state.queue_problems:
        text = "; ".join(f"{each.text} ({each.advice})" for each in state.queue_problems)
        message = f"`billing-sync {command}` cannot use the broker: {text}"
        raise SettingsError(message)
    return settings


def _open_app(settings: Settings) -> BillingApp:
    """The app with its runtime open, so that a missing setting is reported now and not at the first task."""
    logging.configure(settings)
    keep_our_logging()
    app = build(settings)
    resources.make_database_folder(settings)
    wait_for_database(settings, for_writes=True)
    app.runtime  # noqa: B018 - opens it
    return app


def _checked_queues(given: str | None) -> list[str] | None:
    if given is None:
        return None
    chosen = [name.strip() for name in given.split(",") if name.strip()]
    unknown = [name for name in chosen if name not in QUEUES]
    if unknown or not chosen:
        problem = f"there is no queue {', '.join(unknown)}" if unknown else "no queue is given"
        message = f"--queues: {problem}; choose from {', '.join(QUEUES)}"
        raise UsageError(message)
    return chosen


def _email_target(settings: Settings) -> str:
    if settings.smtp_host is not None:
        return settings.smtp_host
    return (
        f"{settings.data_dir / EMAIL_FOLDER_NAME}   (one file each)"
        if settings.is_embedded
        else "queued until SMTP_HOST is set"
    )


def _welcome_lines(settings: Settings, sandbox_url: str | None, api_url: str) -> list[str]:
    folder = settings.data_dir
    provider_line = (
        f"sandbox   {sandbox_url}   (simulates Stripe and Lago; {sandbox_url}/sandbox/state shows its objects)"
        if sandbox_url
        else f"providers {settings.stripe_api_base} and {settings.lago_api_url}"
    )
    python_code = "from core.org_manager import org_manager; org_manager.create_organization('Acme')"
    program = descriptions.program_path()
    return [
        "billing-sync is up. Stop it with Ctrl-C; nothing is lost, whatever ends it.",
        f"  {provider_line}",
        f"  API       {api_url}   (docs at {api_url}/docs; create a key with `{program} keys create`)",
        f"  data      {folder.resolve()}",
        f"  emails    {_email_target(settings)}",
        "Next, in another terminal and this folder:",
        f"  {program} import organizations.json org_users.json",
        f'  {descriptions.program_path("python")} -c "{python_code}"',
        f"  {program} orgs",
        f"  {program} status Acme",
    ]
