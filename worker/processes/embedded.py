"""Everything in one process: database file, Celery worker, relay, sweep, and the sandbox if no provider is configured.

Nothing is lost if the process dies: the database is the source of truth, and the sweep finds whatever was queued in
memory.
"""

from __future__ import annotations

import threading
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, Self

import structlog

from core.backup.backups import parse_age
from core.catalog import publishing
from core.catalog.plans import Catalog
from core.db.database import DATABASE_UNAVAILABLE_ERRORS, cause_name
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tasks import backups, drift, emails, missed_webhooks, sweep
from tasks.base import BillingApp
from worker.config.settings import Settings, SettingsError
from worker.processes.relay import BROKER_UNAVAILABLE_ERRORS, Relay
from worker.processes.thread_pool import ThreadPool
from worker.wiring import celery_app
from worker.wiring.runtime import check_accounts, open_providers

log = structlog.get_logger()

EMBEDDED_TICK_SECONDS: Final = 1.0
EMBEDDED_STOP_SECONDS: Final = 30.0


class EmbeddedProcess:
    """Runs inside a ``with`` block. Only one per process, because Celery's stop flag is global."""

    def __init__(self, settings: Settings, *, sandbox_limits: bool = True) -> None:
        self._settings = settings
        self._sandbox_limits = sandbox_limits
        self._sandbox: Sandbox | None = None
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._app: BillingApp | None = None
        self._worker: Any = None
        self._relay: Relay | None = None

    @property
    def app(self) -> BillingApp:
        if self._app is None:
            message = "not started"
            raise RuntimeError(message)
        return self._app

    @property
    def settings(self) -> Settings:
        """The settings. Once started without configured providers, they contain the sandbox's URL and keys."""
        return self._settings

    def receive_sandbox_webhooks(self, api_url: str) -> None:
        """Have our own sandbox send its webhooks to this API; does nothing if providers are configured."""
        stripe, lago = self._settings.stripe_webhook_secrets, self._settings.lago_webhook_secret
        if self._sandbox is None or not stripe or lago is None:
            return
        with SandboxClient(self._sandbox.url) as client:
            client.set_webhooks(
                stripe={"url": f"{api_url}/webhooks/stripe", "secret": stripe[0]},
                lago={"url": f"{api_url}/webhooks/lago", "secret": lago.get_secret_value()},
            )

    @property
    def sandbox_url(self) -> str | None:
        return self._sandbox.url if self._sandbox else None

    @property
    def is_alive(self) -> bool:
        """Whether all threads run: worker, relay, sweep and the other periodic jobs."""
        return bool(self._threads) and all(thread.is_alive() for thread in self._threads)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _start(self) -> None:
        settings = self._settings
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        if settings.uses_sandbox:
            self._sandbox = Sandbox(limits=self._sandbox_limits, state_file=settings.data_dir / "sandbox.jsonl").start()
            self._settings = settings = settings.with_sandbox(self._sandbox.url)
        self._app = celery_app.build(settings)
        runtime = self._app.runtime
        check_accounts(runtime)
        if self._sandbox is not None:
            _publish_in_sandbox(settings, runtime.catalog)
        self._relay = Relay(self._app, runtime.database)
        self._worker = self._app.WorkController(
            pool=ThreadPool,
            concurrency=settings.worker_concurrency,
            hostname="embedded@localhost",
            without_heartbeat=True,
            without_mingle=True,
            without_gossip=True,
        )
        threads = {
            "worker": self._worker.start,
            "relay": self._relay.run,
            "sweep": self._run_sweep,
            "missed-webhooks": self._find_missed_webhooks,
        }
        if runtime.email_sender is not None:
            threads["emails"] = self._run_emails
        if settings.plan_every_hours is not None:
            threads["drift-check"] = self._run_drift_check
        if settings.backup_dir is not None:
            threads["backups"] = self._run_backups
        for name, target in threads.items():
            thread = threading.Thread(target=target, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def _run_sweep(self) -> None:
        while not self._stopping.wait(EMBEDDED_TICK_SECONDS):
            try:
                sweep.run(self.app)
            except (*BROKER_UNAVAILABLE_ERRORS, *DATABASE_UNAVAILABLE_ERRORS) as error:
                log.warning("sweep_failed", error=cause_name(error))

    def _find_missed_webhooks(self) -> None:
        while not self._stopping.wait(missed_webhooks.FIND_MISSED_SECONDS):
            try:
                missed_webhooks.run(self.app)
            except (*BROKER_UNAVAILABLE_ERRORS, *DATABASE_UNAVAILABLE_ERRORS) as error:
                log.warning("missed_webhooks_unread", error=cause_name(error))

    def _run_emails(self) -> None:
        email_sender = self.app.runtime.email_sender
        while email_sender is not None and not self._stopping.wait(EMBEDDED_TICK_SECONDS):
            try:
                emails.run(email_sender)
            except DATABASE_UNAVAILABLE_ERRORS as error:
                log.warning("email_task_failed", error=cause_name(error))

    def _run_drift_check(self) -> None:
        interval = timedelta(hours=self._settings.plan_every_hours or 0)
        while not self._stopping.wait(drift.DRIFT_TICK_SECONDS):
            try:
                drift.run(self.app, interval)
            except DATABASE_UNAVAILABLE_ERRORS as error:
                log.warning("drift_check_failed", error=cause_name(error))

    def _run_backups(self) -> None:
        settings = self._settings
        every, keep = timedelta(hours=settings.backup_every_hours), parse_age(settings.backup_keep)
        while not self._stopping.wait(EMBEDDED_TICK_SECONDS):
            try:
                backups.run(self.app, settings.backup_folder, every, keep)
            except DATABASE_UNAVAILABLE_ERRORS as error:
                log.warning("backup_failed", error=cause_name(error))

    def _stop(self) -> None:
        """Finish running tasks. Messages still in memory may be lost, because the database has their work."""
        self._stopping.set()
        if self._relay is not None:
            self._relay.stop()
        if self._worker is not None:
            self._worker.stop()
        for thread in self._threads:
            thread.join(EMBEDDED_STOP_SECONDS)
        if self._app is not None:
            self._app.close_runtime()
        if self._sandbox is not None:
            self._sandbox.stop()


def _publish_in_sandbox(sandbox_settings: Settings, catalog: Catalog) -> None:
    """Also in observe mode: what it observes is ours, and an account without prices has nothing to observe.

    The settings name our own sandbox. Raises ``SettingsError`` if it does not take a plan.
    """
    providers = open_providers(sandbox_settings.model_copy(update={"management": "manage"}), catalog)
    try:
        statuses = publishing.publish(catalog, providers.values())
    finally:
        for provider in providers.values():
            provider.close()
    refused = [f"plans.{each.tier}: {each.problem}" for each in statuses if each.missing or each.unknown]
    if refused:
        raise SettingsError("; ".join(refused))
