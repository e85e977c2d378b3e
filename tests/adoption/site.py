"""A business with two accounts, and the commands of billing-sync in observe mode, as an operator types them.

A command can be killed at a request that it makes. Every request that could write is counted.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from sqlalchemy import select, update

from core.adoption.row import AdoptionRow
from core.adoption.table import read_table
from core.db.database import Database
from core.db.models.providers import ProviderStatus
from core.predecessor.files import FilePosition, OldOrganization, write_members, write_organizations
from sandbox.business.cases import create_business
from sandbox.business.catalog import PLANS_TOML
from sandbox.business.seeded import PAYMENT_PROVIDER_CODE, Business, BusinessOrganization
from sandbox.client import SandboxClient
from sandbox.http import Exchange
from sandbox.server import Sandbox
from tests.adoption import judge
from tests.adoption.judge import AdoptedIdentity

PROGRAM: Final = Path(sys.executable).parent / "billing-sync"
COMMAND_MAX_SECONDS: Final = 900
RATES: Final = ("STRIPE_RATE_LIMIT", "STRIPE_OPERATION_RATE_LIMIT", "LAGO_RATE_LIMIT")
MIN_REQUESTS_OF_A_STEP: Final = 16  # a page of subscriptions reads each plan of them, too
MAX_KILL_DELAY_SECONDS: Final = 0.02  # long enough for the transaction that follows a request
HIGH_RATE: Final = "100000"
PLACE: Final = FilePosition("the business", 0, 0)


@dataclass
class RequestWatch:
    """Sees each request in the server's thread. ``kill_at``: the number of the request at which the process dies."""

    count: int = 0
    writes: list[str] = field(default_factory=list)
    kill_at: int | None = None
    kill_after: float = 0.0
    process: subprocess.Popen[str] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, exchange: Exchange) -> None:
        with self.lock:
            self.count += 1
            if exchange.method != "GET" and not exchange.operation.endswith(("preview", "estimate")):
                self.writes.append(exchange.operation)
            if self.count != self.kill_at or self.process is None:
                return
            if self.kill_after:
                threading.Timer(self.kill_after, self.process.kill).start()
            else:
                self.process.kill()


@dataclass(kw_only=True)
class AdoptionSite:
    """``environment``: of every command. Each database is a folder of its own, beside the same two accounts."""

    folder: Path
    sandbox: SandboxClient
    url: str
    watch: RequestWatch
    environment: dict[str, str]
    business: Business = field(init=False)
    kill_points: random.Random = field(default_factory=lambda: random.Random(1))  # noqa: S311  # repeats the same kills

    @property
    def database_url(self) -> str:
        return self.environment["DATABASE_URL"]

    def open_database(self) -> Database:
        return Database(self.database_url)

    def begin(self, *, count: int, seed: int) -> None:
        """A business, and the organization manager's files about it imported."""
        self.run("db", "upgrade")
        self.business = create_business(self.sandbox, count=count, seed=seed, database_id=self.database_id())
        self.import_files()
        self.sandbox.reset_calls()

    def import_files(self) -> None:
        orgs, users = self.folder / "organizations.json", self.folder / "org_users.json"
        write_organizations(orgs, map(_record, self.business.organizations))
        write_members(users, ((each.id, []) for each in self.business.organizations))
        self.run("import", str(orgs), str(users))

    def database_id(self) -> str:
        with closing(self.open_database()) as database, database.read() as session:
            return session.scalars(select(ProviderStatus.database_id)).first() or ""

    def run(self, *arguments: str, accepted: tuple[int, ...] = (0,)) -> str:
        """Run a command to its end. Returns its output; raises AssertionError with its errors if it fails."""
        status, output, errors = self._run(*arguments)
        assert status in accepted, f"{' '.join(arguments)}: exit code {status}\n{output}{errors}"
        return output

    def run_with_kills(self, *arguments: str, requests: int) -> int:
        """Run a command until it ends by itself, killed again and again. Returns how often it was killed.

        ``requests``: how many the command makes. It dies several times, during a request or a moment after one, and
        sometimes so early that a step is done again.
        """
        kills = 0
        while self._run_until_killed(
            *arguments, at_request=self.kill_points.randint(1, max(MIN_REQUESTS_OF_A_STEP, requests // 4))
        ):
            kills += 1
        return kills

    def _run_until_killed(self, *arguments: str, at_request: int) -> bool:
        """Returns whether it came that far."""
        self.watch.kill_after = self.kill_points.choice((0.0, self.kill_points.uniform(0, MAX_KILL_DELAY_SECONDS)))
        self.watch.kill_at = self.watch.count + at_request
        try:
            status, output, errors = self._run(*arguments)
        finally:
            self.watch.kill_at = None
        assert status in {0, 1, -signal.SIGKILL}, f"{' '.join(arguments)}: exit code {status}\n{output}{errors}"
        return status == -signal.SIGKILL

    @contextmanager
    def another_database(self) -> Iterator[AdoptionSite]:
        """An empty one beside the same two accounts."""
        with tempfile.TemporaryDirectory(prefix="billing-sync-adoption-") as name:
            folder = Path(name)
            (folder / "plans.toml").write_text(PLANS_TOML)
            other = AdoptionSite(
                folder=folder,
                sandbox=self.sandbox,
                url=self.url,
                watch=self.watch,
                environment=environment_of(folder, self.url),
            )
            other.business = self.business
            other.copy_database_id(self.database_id())
            yield other

    def copy_database_id(self, database_id: str) -> None:
        """So that the marks that are ours are ours there, too."""
        self.run("db", "upgrade")
        with closing(self.open_database()) as database, database.write() as session:
            session.execute(update(ProviderStatus).values(database_id=database_id))

    def read_table(self, name: str) -> list[AdoptionRow]:
        return read_table(self.folder / name)

    def identities(self) -> list[AdoptedIdentity]:
        with closing(self.open_database()) as database:
            return judge.adopted(database)

    def writes_since(self, count: int) -> list[str]:
        return self.watch.writes[count:]

    def _run(self, *arguments: str) -> tuple[int, str, str]:
        with subprocess.Popen(
            [PROGRAM, *arguments],
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            self.watch.process = process
            output, errors = process.communicate(timeout=COMMAND_MAX_SECONDS)
            self.watch.process = None
        return process.returncode, output, errors


@contextmanager
def open_site(folder: Path) -> Iterator[AdoptionSite]:
    watch = RequestWatch()
    (folder / "plans.toml").write_text(PLANS_TOML)
    with Sandbox(limits=False, observer=watch) as server, SandboxClient(server.url) as sandbox:
        environment = environment_of(folder, server.url)
        yield AdoptionSite(folder=folder, sandbox=sandbox, url=server.url, watch=watch, environment=environment)


def environment_of(folder: Path, url: str) -> dict[str, str]:
    ours = ("STRIPE_", "LAGO_", "REDIS_", "CELERY_", "DATABASE_", "PLANS_", "POSTGRES_", "PG")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(ours)},
        "DATABASE_URL": f"sqlite:///{folder / 'billing-sync.db'}",
        "DATA_DIR": str(folder),
        "PLANS_FILE": str(folder / "plans.toml"),
        "MANAGEMENT": "observe",
        "MONEY_CHANGES_PER_HOUR": "off",  # each customer is upgraded within the hour
        "STRIPE_SECRET_KEY": "sk_test_sandbox",
        "STRIPE_API_BASE": url,
        "LAGO_API_KEY": "sandbox",
        "LAGO_API_URL": url,
        "LAGO_STRIPE_PROVIDER_CODE": PAYMENT_PROVIDER_CODE,
        "COLUMNS": "80",
        "NO_COLOR": "1",
        **dict.fromkeys(RATES, HIGH_RATE),
    }


def _record(organization: BusinessOrganization) -> OldOrganization:
    return OldOrganization(
        id=organization.id,
        name=organization.name,
        created_at=datetime(2024, 1, 8, tzinfo=UTC),
        plan_tier=organization.plan_tier,
        lago_customer_id=organization.lago_customer_id,
        stripe_customer_id=organization.stripe_customer_id,
        status="active",
        position=PLACE,
    )
