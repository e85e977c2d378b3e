"""Runner of the matrix: run an operation, kill it at a point, let time pass, start it again, and read the result.

A run starts where an earlier operation ended: the database and the sandbox are restored from a snapshot. After a kill
there is no waiting. Instead, the times in the rows are moved back, as if the system had been down for five minutes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import SecretStr
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Mapper

from core.catalog import plans as plan_catalog
from core.catalog import publishing
from core.catalog.plans import Catalog
from core.db.base import Base
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.db.models.events import Event
from core.db.models.inbox import ServiceEvent
from core.db.models.jobs import JobLock
from core.db.models.organizations import Organization
from core.events.event_types import ChangeContext
from core.organizations import commands
from core.reconcile import charging_moves, due_links, payment_holds
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tasks.routing import SWEEP
from tests.crash.killer import Killer, ended, kill
from tests.crash.operations import ORG, CrashOperation, Setting
from tests.crash.outcome import Outcome, outcome
from tests.crash.points import NOT_ANSWERED, NOT_DONE, Point
from tests.crash.targets import CrashTarget, Process
from tests.crash.zygote import Order
from tests.support import leaks
from worker.config.settings import Settings
from worker.wiring import runtime

ROOT = Path(__file__).resolve().parents[2]
# Longer than every lease and every wait after a first failure. Shorter than the ten minutes by which clocks may differ,
# since the sandbox's clock is not moved.
STANDSTILL = timedelta(minutes=5)
PERIOD = timedelta(days=32)
LINKS_PAYER, MANUAL_PAYMENTS = {"LAGO_STRIPE_PROVIDER_CODE": "stripe_main"}, {"LAGO_MANUAL_PAYMENTS": "true"}
STRIPE_KEY, LAGO_KEY = "sk_test_nobody_may_read_this", "a_lago_key_nobody_may_read"
# A run that passes its point does so within a few seconds. One that never does costs this much, and is tried again.
REACHED_SECONDS = 30.0
FINISHED_SECONDS = 180.0
OUTLIVED_SECONDS = 60.0
POLL_SECONDS = 0.05
SWEEP_INTERVAL_SECONDS = 0.4
# Short waits are not skipped.
MAX_IDLE_WAIT_SECONDS = 1.2


class RunTimeoutError(Exception):
    """A run did not finish in time; the message says what is left to do."""


class Zygote:
    """The parent of all our processes (``zygote.py``), shared by all runners."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.zygote"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def start(self, order: Order) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(order.line())
            self._process.stdin.flush()
            return int(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """An undisturbed run: its result, and the points that it passed, in order."""

    outcome: Outcome
    points: list[Point]


@dataclass(frozen=True, slots=True, kw_only=True)
class Crashed:
    """``reached`` is False if the run did not pass the point, so that nothing was killed."""

    reached: bool
    outcome: Outcome
    points: list[Point]


class CrashRunner:
    """A context manager. ``snapshots`` is the folder of the stored states, shared by all runners."""

    def __init__(self, target: CrashTarget, snapshots: Path, zygote: Zygote) -> None:
        self._target = target
        self._snapshots = snapshots
        self._zygote = zygote
        self._running: dict[Process, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill_all()
        self._target.close()

    def record(self, operation: CrashOperation) -> Recorded:
        """Run the operation undisturbed, and store its state for the operations that build on it."""
        with self._run_from_start(operation) as run:
            run.start_all(operation, deadly=None)
            run.wait_until_finished(operation)
            points, found = run.passed(), run.outcome()
            self._kill_all()
            run.let_time_pass()
        self._save_state(operation.name)
        return Recorded(outcome=found, points=points)

    def crash(self, operation: CrashOperation, point: Point) -> Crashed:
        with self._run_from_start(operation) as run:
            run.aim(point)
            run.start_all(operation, deadly=point)
            reached = run.wait_for_death(point)
            run.remove_aim()
            run.let_time_pass()
            run.start_again(operation)
            run.wait_until_finished(operation)
            return Crashed(reached=reached, outcome=run.outcome(), points=run.passed())

    @property
    def log(self) -> str:
        """The output of the processes of the last run."""
        return "\n".join(log.read_text(errors="replace") for log in sorted(self._folder.glob("*.log")))

    def leaked(self) -> list[str]:
        """The places that contain an API key: logs of the last run, or rows."""
        written = [*leaks.files(self._folder, "*.log"), *leaks.rows(self._target.database_url, with_names=True)]
        return leaks.found(written, {STRIPE_KEY, LAGO_KEY})

    @property
    def _folder(self) -> Path:
        return self._target.folder / "run"

    @contextmanager
    def _run_from_start(self, operation: CrashOperation) -> Iterator[_Run]:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        before = operation.after or "empty"
        self._target.restore_state(before)
        state = self._folder / "sandbox.jsonl"
        snapshot = self._snapshots / f"{before}.jsonl"
        if snapshot.exists():
            shutil.copy(snapshot, state)
        killer = Killer()
        database = Database(self._target.database_url, pool_size=2)
        with (
            Sandbox(limits=False, state_file=state, observer=killer.see) as served,
            SandboxClient(served.url) as client,
        ):
            try:
                environment = self._environment(operation.setting, served.url)
                run = _Run(
                    self._target, self._zygote, self._folder, client, killer, database, environment, self._running
                )
                run.prepare(operation)
                yield run
            finally:
                self._kill_all()
                database.close()

    def _environment(self, setting: Setting, url: str) -> dict[str, str]:
        plans = self._folder / "plans.toml"
        plans.write_text(_plan_file(setting), encoding="utf-8")
        return {
            **{name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ},
            **self._target.environment,
            **({"CHARGED_BY": setting.charged_by} if setting.charged_by else {}),
            **(LINKS_PAYER if setting.links_payer else MANUAL_PAYMENTS),
            **dict(setting.also),
            "DATA_DIR": str(self._folder),
            "PLANS_FILE": str(plans),
            "STRIPE_SECRET_KEY": STRIPE_KEY,
            "STRIPE_API_BASE": url,
            "LAGO_API_KEY": LAGO_KEY,
            "LAGO_API_URL": url,
            # One task after the other, so that each run passes the same points.
            "WORKER_CONCURRENCY": "1",
            "LOG_LEVEL": "INFO",
        }

    def _save_state(self, name: str) -> None:
        self._target.save_state(name)
        shutil.copy(self._folder / "sandbox.jsonl", self._snapshots / f"{name}.jsonl")

    def _kill_all(self) -> None:
        while self._running:
            kill(self._running.popitem()[1])


@dataclass
class _Run:
    """One run, from the restored state until everything is killed."""

    target: CrashTarget
    zygote: Zygote
    folder: Path
    sandbox: SandboxClient
    killer: Killer
    database: Database
    environment: dict[str, str]
    running: dict[Process, int]
    aimed: int | None = None

    def prepare(self, operation: CrashOperation) -> None:
        if operation.after is None or operation.moves_to is not None:
            _publish_plans(Path(self.environment["PLANS_FILE"]), operation.setting, self.environment["LAGO_API_URL"])
        if operation.period_ends:
            self.sandbox.advance(PERIOD)
            with self.database.write() as session:
                due_at = datetime.now(UTC) - timedelta(minutes=1)
                session.execute(update(Organization).values(plan_effective_at=due_at, downgrade_recheck_at=due_at))
        if operation.is_released:
            plans = _catalog(Path(self.environment["PLANS_FILE"]), operation.setting)
            with self.database.write() as session:
                organization = commands.lock(session, ORG)
                assert organization is not None
                change = ChangeContext(session, datetime.now(UTC))
                assert payment_holds.release(change, organization, plans, "it is meant") == ["lago"]
        if operation.moves_to is not None:
            plans = _catalog(Path(self.environment["PLANS_FILE"]), operation.setting)
            with self.database.write() as session:
                organization = commands.lock(session, ORG)
                assert organization is not None
                change = ChangeContext(session, datetime.now(UTC))
                charging_moves.begin(change, organization, plans, operation.moves_to, is_expected=False)
        self.sandbox.reset_calls()
        self.killer.reset()

    def add_faults(self, operation: CrashOperation) -> None:
        for fault in operation.faults:
            self.sandbox.add_fault(**fault)

    def aim(self, point: Point) -> None:
        """Add this fault before the operation's own faults, since the first one that matches a request is used."""
        if point.moment == NOT_DONE:
            provider = "stripe" if " /v1/" in point.site else "lago"
            self.aimed = self.sandbox.add_fault(provider, point.site, "reset", skip=point.number - 1)

    def remove_aim(self) -> None:
        if self.aimed is not None:
            self.sandbox.remove_fault(self.aimed)

    def start_all(self, operation: CrashOperation, deadly: Point | None) -> None:
        self.add_faults(operation)
        for process in self.target.processes:
            self._start(process, operation, deadly)
        if deadly is not None and deadly.moment in {NOT_DONE, NOT_ANSWERED}:
            self.killer.aim(deadly, self.running[self.target.processes[0]])
        self.target.send(operation.messages)

    def start_again(self, operation: CrashOperation) -> None:
        """Start everything again. The sender knows no status yet and sends again; the inbox stores a message once."""
        for process in self.target.processes:
            self._start(process, operation, None)
        self.target.send(operation.messages)
        self.target.send_task(SWEEP)

    def wait_for_death(self, point: Point) -> bool:
        """Wait until one process is killed; return whether that was at the point.

        All other processes are killed at once, as if their machine had lost power. Only the state in the database, the
        broker and at the providers is left.
        """
        until = time.monotonic() + REACHED_SECONDS
        handles = {process: os.pidfd_open(number) for process, number in self.running.items()}
        waiting = self._waiting()
        try:
            while time.monotonic() < until:
                for process, handle in handles.items():
                    if ended(handle, POLL_SECONDS / len(handles)):
                        del self.running[process]
                        self._stop_all()
                        return point in self.passed()
                next(waiting)
        finally:
            for handle in handles.values():
                os.close(handle)
        self._stop_all()
        return False

    def wait_until_finished(self, operation: CrashOperation) -> None:
        until = time.monotonic() + FINISHED_SECONDS
        waiting = self._waiting()
        while left := self._left(operation):
            if time.monotonic() > until:
                message = f"not finished within {FINISHED_SECONDS:.0f} s: {', '.join(left)}"
                raise RunTimeoutError(message)
            next(waiting)
            time.sleep(POLL_SECONDS)

    def let_time_pass(self) -> None:
        """Move all stored times back by five minutes."""
        self._wait_for_open_commits()
        with self.database.write() as session:
            for mapper in Base.registry.mappers:
                for row in session.scalars(select(mapper.class_)):
                    _move_back(mapper, row)

    def _wait_for_open_commits(self) -> None:
        """Wait until Postgres has finished the commits of killed processes, before the times are moved."""
        if self.database.is_sqlite:
            return
        self.database.engine.dispose()
        until = time.monotonic() + OUTLIVED_SECONDS
        others = text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        while time.monotonic() < until:
            # On a busy machine a connection may take longer than the product waits for one.
            with suppress(OperationalError), self.database.read() as session:
                if not session.scalar(others):
                    return
            time.sleep(POLL_SECONDS)
        message = "connections of killed processes are still open"
        raise RunTimeoutError(message)

    def outcome(self) -> Outcome:
        return outcome(self.sandbox, self.database)

    def _traced(self) -> list[Point]:
        trace = self.folder / "trace"
        return [Point.of(line) for line in trace.read_text().splitlines()] if trace.exists() else []

    def passed(self) -> list[Point]:
        return [*self._traced(), *self.killer.points]

    def _start(self, process: Process, operation: CrashOperation, deadly: Point | None) -> None:
        inside = deadly is not None and deadly.moment not in {NOT_DONE, NOT_ANSWERED}
        order = Order(
            words=list(process.words),
            environment=self.environment,
            folder=str(self.folder),
            log=str(self.folder / f"{process.words[0]}.log"),
            trace=str(self.folder / "trace"),
            deadly=deadly.line() if deadly is not None and inside else None,
            messages=list(operation.messages) if process.takes_messages else [],
        )
        self.running[process] = self.zygote.start(order)

    def _left(self, operation: CrashOperation) -> list[str]:
        """What is left to do; empty if the run has finished."""
        expected = {str(message["id"]) for message in operation.messages}
        with self.database.read() as session:
            handled = set(session.scalars(select(ServiceEvent.id).where(ServiceEvent.status != "waiting")))
            pending = session.scalar(select(func.count()).select_from(Event).where(Event.published_at.is_(None)))
            leased = session.scalars(select(BillingLink.provider).where(BillingLink.lease_token.is_not(None))).all()
            waits = operation.period_ends and session.scalar(select(Organization.pending_plan_tier)) is not None
            return [
                *(f"behind at {behind}" for behind in due_links.count_behind(session)),
                *(f"message {number} not handled" for number in sorted(expected - handled)),
                *([f"{pending} events not relayed"] if pending else []),
                *(f"a sync attempt at {provider}" for provider in leased),
                *(["the downgrade has not taken effect"] if waits else []),
            ]

    def _waiting(self) -> Iterator[None]:
        """Act while the run waits: send the sweep as beat does, and shorten the waits of idle links."""
        swept_at = time.monotonic() + MAX_IDLE_WAIT_SECONDS - SWEEP_INTERVAL_SECONDS
        while True:
            now = time.monotonic()
            if now - swept_at > SWEEP_INTERVAL_SECONDS:
                swept_at = now
                self.target.send_task(SWEEP)
                self._shorten_waits()
            yield

    def _shorten_waits(self) -> None:
        with self.database.write() as session:
            idle = select(BillingLink).where(BillingLink.lease_token.is_(None)).with_for_update()
            for link in session.scalars(idle):
                _move_back(BillingLink.__mapper__, link)
            for job in session.scalars(select(JobLock).with_for_update()):
                _move_back(JobLock.__mapper__, job)

    def _stop_all(self) -> None:
        while self.running:
            kill(self.running.popitem()[1])


def _move_back(mapper: Mapper[Any], row: object) -> None:
    for attribute in mapper.column_attrs:
        value = getattr(row, attribute.key)
        if isinstance(value, datetime):
            setattr(row, attribute.key, value - STANDSTILL)
        elif attribute.key == "intent" and value is not None:
            setattr(row, attribute.key, {key: _earlier(key, each) for key, each in value.items()})


def _earlier(key: str, value: object) -> object:
    if not key.endswith("_at"):
        return value
    return (datetime.fromisoformat(str(value)) - STANDSTILL).isoformat()


def _plan_file(setting: Setting) -> str:
    text = plan_catalog.DEFAULT_PLANS_FILE.read_text(encoding="utf-8")
    for tier, charging_provider in setting.tiers:
        text = text.replace(f"[plans.{tier}]\n", f'[plans.{tier}]\ncharged_by = "{charging_provider}"\n')
    return text


def _catalog(plans_file: Path, setting: Setting) -> Catalog:
    return plan_catalog.load(plans_file, "stripe" if setting.charged_by == "stripe" else None)


def _publish_plans(plans_file: Path, setting: Setting, url: str) -> None:
    plans = _catalog(plans_file, setting)
    settings = Settings.model_construct(
        stripe_secret_key=SecretStr(STRIPE_KEY),
        stripe_api_base=url,
        lago_api_key=SecretStr(LAGO_KEY),
        lago_api_url=url,
        lago_manual_payments=True,
    )
    providers = runtime.open_providers(settings, plans)
    publishing.publish(plans, providers.values())
    for provider in providers.values():
        provider.close()
