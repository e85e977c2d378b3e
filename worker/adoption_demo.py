"""The demo of a business that exists already: what is found, adopted and left, and what managing it changes.

A sandbox gets some hundred messy customers at both providers. The commands that an operator types are run and shown, in
a temporary folder, in observe mode; then one process manages what was adopted. At the end both accounts are compared
with what they were: the demo fails unless only our metadata was written to what was there. It reads nothing from the
environment: no key, no server, no setting.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from sqlalchemy import func, or_, select, text

from core.adoption.row import AdoptionRow
from core.adoption.table import read_table
from core.db.database import Database
from core.db.models.billing_links import LINK_IS_BEHIND, BillingLink
from core.db.models.providers import ProviderStatus
from core.predecessor.files import FilePosition, OldOrganization, write_members, write_organizations
from sandbox.business.cases import create_business
from sandbox.business.catalog import PLANS_TOML
from sandbox.business.comparison import OBJECT_PLACES, changed_objects, new_objects, objects_with_new_metadata
from sandbox.business.seeded import Business, BusinessOrganization
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from worker.config.settings import Settings
from worker.processes.embedded import EmbeddedProcess
from worker.wiring.database import connect_to_file

DEMO_CUSTOMERS: Final = 300
DEMO_SEED: Final = 1
FIRST_ADOPTED: Final = 10
TABLE_FILE: Final = "adoption.csv"
COMMAND_MAX_SECONDS: Final = 120.0
MANAGE_MAX_SECONDS: Final = 90.0
MANAGE_POLL_SECONDS: Final = 0.2
REQUESTS_PER_SECOND: Final = 400.0  # the demo's sandbox has no limits
LINES_SHOWN: Final = 24
MARKS_PREFIX: Final = "billing_sync_"
RUN_COMMAND: Final = "from worker.cli import main; main()"
SANDBOX_PORT: Final = 8700
SANDBOX_URL: Final = f"http://127.0.0.1:{SANDBOX_PORT}"
STATE_FILE: Final = "sandbox.jsonl"
_PROGRAM_VARIABLES: Final = (
    "PATH",
    "PYTHONPATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TERM",
    "TMPDIR",
    "COLUMNS",
    "NO_COLOR",
    "SYSTEMROOT",
)
_PLACE: Final = FilePosition("the demo", 0, 0)

WriteLine = Callable[[str], None]
ShowRows = Callable[[list[AdoptionRow]], None]


class DemoCommandError(Exception):
    """A command of the demo failed. The message is what it printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptionDemoResult:
    """``marked``: how many objects got our metadata, by kind, such as "customers in Stripe". ``started``: new objects.

    ``problem`` is ``None`` if nothing but our metadata was written to what was there.
    """

    rows: list[AdoptionRow]
    customers: int
    adopted: int
    marked: Mapping[str, int]
    started: Mapping[str, int]
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Demo:
    folder: Path
    settings: Settings
    sandbox: SandboxClient
    write_line: WriteLine
    show: WriteLine

    def run(self, *arguments: str) -> None:
        """Show the command as it is typed, and what it prints. Raises ``DemoCommandError``."""
        self.show(f"$ billing-sync {' '.join(arguments)}")
        self.show(_shortened(self.run_silently(*arguments)))

    def run_silently(self, *arguments: str) -> str:
        ended = subprocess.run(  # noqa: S603  # our own program
            [sys.executable, "-c", RUN_COMMAND, *arguments],
            env=_environment(self.settings),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=COMMAND_MAX_SECONDS,
            check=False,
        )
        if ended.returncode not in {0, 1}:
            raise DemoCommandError(ended.stderr or ended.stdout)
        return ended.stdout

    @contextmanager
    def database(self) -> Iterator[Database]:
        database = connect_to_file(self.folder / "billing-sync.db")
        try:
            yield database
        finally:
            database.close()


def run(write_line: WriteLine, show: WriteLine, show_rows: ShowRows) -> AdoptionDemoResult:
    """Run the demo: ``write_line`` gets one line for each step, ``show`` the commands and what they print.

    Raises ``DemoCommandError``, ``subprocess.TimeoutExpired``.
    """
    with (
        tempfile.TemporaryDirectory(prefix="billing-sync-demo-") as name,
        Sandbox(limits=False) as server,
        SandboxClient(server.url) as sandbox,
    ):
        folder = Path(name)
        (folder / "plans.toml").write_text(PLANS_TOML, encoding="utf-8")
        settings = _settings(folder).with_sandbox(server.url)
        demo = _Demo(folder=folder, settings=settings, sandbox=sandbox, write_line=write_line, show=show)
        business = _begin(demo)
        before = sandbox.state()
        rows = _adopt(demo, show_rows)
        problem = _manage(demo)
        after = sandbox.state()
        return AdoptionDemoResult(
            rows=rows,
            customers=len(business.customers),
            adopted=_count_adopted(demo),
            marked=objects_with_new_metadata(before, after, MARKS_PREFIX),
            started={kind: len(found) for kind in OBJECT_PLACES if (found := new_objects(before, after, kind))},
            problem=problem or next(changed_objects(before, after, except_metadata=MARKS_PREFIX), None),
        )


def make_folder(folder: Path, write_line: WriteLine) -> None:
    """Make a folder with everything that ``run`` begins with: the imported organizations, and the sandbox's state.

    Raises ``OSError`` if it cannot be made, ``DemoCommandError``, and ``subprocess.TimeoutExpired``.
    """
    folder.mkdir()
    (folder / "plans.toml").write_text(PLANS_TOML, encoding="utf-8")
    with (
        Sandbox(limits=False, state_file=folder / STATE_FILE) as server,
        SandboxClient(server.url) as sandbox,
    ):
        settings = _settings(folder.resolve()).with_sandbox(server.url)
        _begin(_Demo(folder=folder, settings=settings, sandbox=sandbox, write_line=write_line, show=write_line))
    served = _environment(_settings(Path()).with_sandbox(SANDBOX_URL))
    lines = [f"{name}={served[name]}\n" for name in served if name not in _PROGRAM_VARIABLES]
    (folder / ".env").write_text("".join(lines), encoding="utf-8")


def _shortened(output: str) -> str:
    """The beginning and the last line, which has the numbers."""
    lines = output.rstrip().splitlines()
    if len(lines) <= LINES_SHOWN:
        return f"{output.rstrip()}\n"
    return "\n".join([*lines[: LINES_SHOWN - 2], "…", lines[-1], ""])


def _settings(folder: Path) -> Settings:
    """Built without the environment, so that a key set there is never used."""
    return Settings.model_construct(
        data_dir=folder,
        plans_file=folder / "plans.toml",
        worker_concurrency=8,
        stripe_rate_limit=REQUESTS_PER_SECOND,
        stripe_operation_rate_limit=REQUESTS_PER_SECOND,
        lago_rate_limit=REQUESTS_PER_SECOND,
    )


def _environment(settings: Settings) -> dict[str, str]:
    """Of the commands. Of ours they get what a program needs to run and to print."""
    rate = f"{REQUESTS_PER_SECOND:.0f}"
    return {
        **{name: value for name in _PROGRAM_VARIABLES if (value := os.environ.get(name)) is not None},
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # also where nothing is installed in the usual place
        "DATA_DIR": str(settings.data_dir),
        "PLANS_FILE": str(settings.plans_file),
        "MANAGEMENT": "observe",
        "STRIPE_SECRET_KEY": "sk_test_sandbox",
        "STRIPE_API_BASE": settings.stripe_api_base or "",
        "LAGO_API_KEY": "sandbox",
        "LAGO_API_URL": settings.lago_api_url or "",
        "LAGO_STRIPE_PROVIDER_CODE": settings.lago_stripe_provider_code or "",
        "STRIPE_RATE_LIMIT": rate,
        "STRIPE_OPERATION_RATE_LIMIT": rate,
        "LAGO_RATE_LIMIT": rate,
    }


def _begin(demo: _Demo) -> Business:
    demo.run_silently("db", "upgrade")
    with demo.database() as database, database.read() as session:
        database_id = session.scalars(select(ProviderStatus.database_id)).first() or ""
    business = create_business(demo.sandbox, count=DEMO_CUSTOMERS, seed=DEMO_SEED, database_id=database_id)
    state = demo.sandbox.state()
    demo.write_line(
        f"A sandbox has {DEMO_CUSTOMERS} customers of a business that began without billing-sync: "
        f"{len(state['stripe']['subscriptions'])} subscriptions in Stripe, "
        f"{len(state['lago']['subscriptions'])} in Lago"
    )
    orgs, users = demo.folder / "organizations.json", demo.folder / "org_users.json"
    write_organizations(orgs, map(_record, business.organizations))
    write_members(users, ((each.id, []) for each in business.organizations))
    demo.run_silently("import", orgs.name, users.name)
    demo.write_line(
        f"{len(business.organizations)} of them are organizations here, imported from the organization manager's files"
    )
    demo.write_line("MANAGEMENT=observe: everything is read and compared, and nothing is written at a provider")
    return business


def _adopt(demo: _Demo, show_rows: ShowRows) -> list[AdoptionRow]:
    demo.run("adopt", "discover", "--out", TABLE_FILE)
    rows = read_table(demo.folder / TABLE_FILE)
    show_rows(rows)
    demo.run("adopt", "apply", TABLE_FILE, "--limit", str(FIRST_ADOPTED), "--yes")
    demo.run("adopt", "apply", TABLE_FILE, "--yes")
    writes = [call for call in demo.sandbox.calls() if call.method != "GET"]
    demo.write_line(f"{len(writes)} requests until now could write at a provider")
    return rows


def _manage(demo: _Demo) -> str | None:
    """Manage what was adopted until nothing is due. Returns the problem if that does not happen, else ``None``."""
    demo.write_line("MANAGEMENT=manage: the adopted organizations are synced from now on")
    started = time.monotonic()
    with EmbeddedProcess(demo.settings) as embedded:
        while time.monotonic() - started < MANAGE_MAX_SECONDS:
            if not _count_due(embedded.app.runtime.database):
                demo.write_line(f"Nothing is left to do after {time.monotonic() - started:.0f} s")
                return None
            time.sleep(MANAGE_POLL_SECONDS)
        due = _count_due(embedded.app.runtime.database)
    return f"{due} links are not in sync after {MANAGE_MAX_SECONDS:.0f} s"


def _count_due(database: Database) -> int:
    """Links of adopted organizations that are not in sync, or whose metadata is not written yet."""
    adopted = select(BillingLink.org_id).where(BillingLink.ownership == "adopted")
    due = or_(text(LINK_IS_BEHIND), BillingLink.marks == "due")
    with database.read() as session:
        return session.scalar(select(func.count()).where(BillingLink.org_id.in_(adopted), due)) or 0


def _count_adopted(demo: _Demo) -> int:
    with demo.database() as database, database.read() as session:
        adopted = select(func.count(BillingLink.org_id.distinct())).where(BillingLink.ownership == "adopted")
        return session.scalar(adopted) or 0


def _record(organization: BusinessOrganization) -> OldOrganization:
    return OldOrganization(
        id=organization.id,
        name=organization.name,
        created_at=datetime(2024, 1, 8, tzinfo=UTC),
        plan_tier=organization.plan_tier,
        lago_customer_id=organization.lago_customer_id,
        stripe_customer_id=organization.stripe_customer_id,
        status="active",
        position=_PLACE,
    )
