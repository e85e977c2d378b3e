"""The demo: an embedded billing-sync with its sandbox, in a temporary folder.

It imports organizations of the predecessor, two of which already have customers at the providers: these are observed
until they are adopted. It then creates another one, and renames, upgrades and downgrades it. The result is read from
our database and counted by the sandbox: the demo fails unless each organization has exactly one customer at each
provider. It reads nothing from the environment: no key, no server, no setting.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from core.adoption.adopter import Adopter
from core.adoption.adoption import AdoptionRules
from core.adoption.discovery import Discovery
from core.adoption.proposal import ProposalRules
from core.catalog import plans as plan_catalog
from core.common.clock import utc_now
from core.db.database import Database
from core.db.models.organizations import Organization
from core.events.event_types import Cause, ChangeContext
from core.organizations import commands, plan_changes
from core.organizations.commands import NewOrganization
from core.ports.inventory import Inventory
from core.predecessor.files import FilePosition, OldMember, OldOrganization, write_members, write_organizations
from core.predecessor.importing import import_files
from core.reconcile.low_priority_reader import LowPriorityReader
from core.reporting import overview
from core.reporting.overview import OrganizationReport
from sandbox.client import LoggedCall, SandboxClient
from sandbox.http import JsonDocument
from tasks.base import Runtime
from worker.config.settings import Settings
from worker.processes.embedded import EmbeddedProcess

DEMO_STEP_MAX_SECONDS: Final = 45.0  # seconds per step
DEMO_POLL_SECONDS: Final = 0.05
DEMO_CAUSE: Final = Cause(actor="demo")

WriteLine = Callable[[str], None]
DemoStep = Callable[[ChangeContext, Organization], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOrganization:
    """One organization at the end: its row, and the number of requests for it at each provider."""

    organization: OrganizationReport
    stripe_calls: int
    lago_calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """``problem`` is ``None`` if everything is in sync and each organization has exactly one customer."""

    organizations: list[DemoOrganization]
    problem: str | None
    stripe_calls: int
    lago_calls: int


def run(write_line: WriteLine) -> DemoResult:
    """Run the demo and write one line per step. It ends within a few minutes in any case."""
    with tempfile.TemporaryDirectory(prefix="billing-sync-demo-") as folder:
        path = Path(folder)
        with EmbeddedProcess(_settings(path)) as embedded, SandboxClient(embedded.sandbox_url or "") as sandbox:
            write_line(f"billing-sync and a sandbox of Stripe and Lago are running at {embedded.sandbox_url}")
            sandbox.reset_calls()
            runtime = embedded.app.runtime
            problem = _run_steps(runtime, sandbox, path, write_line)
            return _result(runtime, sandbox, problem)


def _settings(folder: Path) -> Settings:
    """Built without the environment, so that a key set there is never used."""
    return Settings.model_construct(data_dir=folder, plans_file=plan_catalog.DEFAULT_PLANS_FILE, worker_concurrency=4)


def _run_steps(runtime: Runtime, sandbox: SandboxClient, folder: Path, write_line: WriteLine) -> str | None:
    """Run the steps, each until both providers are in sync. Returns the first problem, or ``None``."""
    started = time.monotonic()
    summary = _import(runtime, sandbox, folder)
    problem = _wait_until_in_sync(runtime.database, accepts_observed=True)
    write_line(f"Imported {summary}")
    write_line(f"Both providers in sync after {time.monotonic() - started:.1f} s, but for these 2, which are observed")
    problem = problem or _adopt(runtime) or _wait_until_in_sync(runtime.database)
    write_line("Adopted them: from now on billing-sync manages their customers, too")
    with runtime.database.write() as session:
        new = NewOrganization(name="Northwind", plan_tier=runtime.catalog.offered_tiers()[0])
        org_id = commands.create(ChangeContext(session, utc_now(), DEMO_CAUSE), new, runtime.catalog).id
    problem = problem or _wait_until_in_sync(runtime.database)
    write_line("Created Northwind: a customer at Stripe, a customer and a subscription at Lago")
    for sentence, step in _steps(runtime):
        if problem is None:
            _change(runtime, org_id, step)
            problem = _wait_until_in_sync(runtime.database)
            write_line(sentence)
    return problem


def _steps(runtime: Runtime) -> Iterable[tuple[str, DemoStep]]:
    plans = runtime.catalog
    tiers = plans.offered_tiers()
    high, low = tiers[-1], tiers[len(tiers) // 2 - 1]

    def rename(change: ChangeContext, organization: Organization) -> None:
        commands.rename(change, organization, "Northwind Traders")

    def upgrade(change: ChangeContext, organization: Organization) -> None:
        plan_changes.change_plan(change, organization, high, plans)

    def downgrade(change: ChangeContext, organization: Organization) -> None:
        plan_changes.change_plan(change, organization, low, plans)

    yield "Renamed it Northwind Traders", rename
    yield f"Upgraded it to {high}, effective immediately", upgrade
    yield f"Downgraded it to {low}, effective at the end of the paid period", downgrade


def _change(runtime: Runtime, org_id: str, step: DemoStep) -> None:
    with runtime.database.write() as session:
        organization = commands.lock(session, org_id)
        if organization is not None:
            step(ChangeContext(session, utc_now(), DEMO_CAUSE), organization)


def _import(runtime: Runtime, sandbox: SandboxClient, folder: Path) -> str:
    """Import the predecessor's files, with some customers already at the providers. Returns a summary."""
    records = _predecessor_organizations(runtime.catalog.tiers())
    existing_at_providers = [each for each in records if each.stripe_customer_id]
    sandbox.preload_stripe_customers(
        {"id": each.stripe_customer_id, "name": each.name} for each in existing_at_providers
    )
    sandbox.preload_lago_customers(
        {"lago_id": each.lago_customer_id, "external_id": each.id, "name": each.name} for each in existing_at_providers
    )
    for each in existing_at_providers:
        sandbox.preload_lago_subscription(each.id, runtime.catalog.plan(each.plan_tier).lago_plan_code, each.id)
    orgs_file, users_file = folder / "organizations.json", folder / "org_users.json"
    write_organizations(orgs_file, records)
    write_members(users_file, ((each.id, _predecessor_members(each)) for each in records))
    report = import_files(runtime.database, runtime.catalog, utc_now, orgs_file, users_file)
    return (
        f"{report.organizations.new} organizations with {report.members.new} members; "
        f"{len(existing_at_providers)} of the organizations already exist at the providers"
    )


def _adopt(runtime: Runtime) -> str | None:
    """Discover who is who, and adopt whom nothing speaks against. Returns the first problem, or ``None``."""
    reader: LowPriorityReader[Inventory] = LowPriorityReader(readers=runtime.inventories, purpose="demo")
    discovery = Discovery(
        database=runtime.database,
        reader=reader,
        account_guard=runtime.reconciler.account_guard,
        rules=ProposalRules(catalog=runtime.catalog),
        clock=utc_now,
    )
    run = discovery.run()
    rows = list(discovery.rows(run))
    discovery.end(run)
    adopter = Adopter(
        database=runtime.database,
        read=reader,
        rules=AdoptionRules(catalog=runtime.catalog, policy=runtime.reconciler.policy),
        clock=utc_now,
        cause=DEMO_CAUSE,
    )
    refused = [each for each in adopter.apply(rows) if each.kind != "adopted"]
    return f"{refused[0].org_id} was not adopted: {refused[0].reason}" if refused else None


_DEMO_PLACE: Final = FilePosition("the demo", 0, 0)
_FIRST_CREATED_AT: Final = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
# Name, Lago's id, Stripe's id. The first two are existing customers.
_PREDECESSOR_ORGANIZATIONS: Final[tuple[tuple[str, str | None, str | None], ...]] = (
    ("Acme Corporation", "5d2c8f10-0000-4000-8000-000000000001", "cus_AcmeSince2024"),
    ("Pro Tech Inc", "a7e90b42-0000-4000-8000-000000000002", "cus_ProTechSince25"),
    ("Zürich Analytics", None, None),
    ("Blue Harbor Foods", None, None),
    ("Kite & Sons", None, None),
)


def _predecessor_organizations(tiers: list[str]) -> list[OldOrganization]:
    return [
        OldOrganization(
            id=f"org_5e1f0c00-7a11-4000-8000-{number:012d}",
            name=name,
            created_at=_FIRST_CREATED_AT + timedelta(days=number),
            plan_tier=tiers[number % len(tiers)],
            lago_customer_id=lago_id,
            stripe_customer_id=stripe_id,
            status="active",
            position=_DEMO_PLACE,
        )
        for number, (name, lago_id, stripe_id) in enumerate(_PREDECESSOR_ORGANIZATIONS)
    ]


def _predecessor_members(organization: OldOrganization) -> list[OldMember]:
    return [
        OldMember(
            org_id=organization.id, user_id=user, role=role, joined_at=organization.created_at, position=_DEMO_PLACE
        )
        for user, role in (("user_alice", "owner"), ("user_bob", "member"))
    ]


def _wait_until_in_sync(database: Database, *, accepts_observed: bool = False) -> str | None:
    """Wait until everything is in sync. Returns the problem if that does not happen, else ``None``.

    ``accepts_observed``: what is observed need not be in sync.
    """
    ends_at = time.monotonic() + DEMO_STEP_MAX_SECONDS
    while time.monotonic() < ends_at:
        with database.read() as session:
            found = overview.summarize(session)
        is_idle = not found.unpublished and not any(each.behind or each.parked for each in found.providers.values())
        if found.in_sync or (accepts_observed and is_idle):
            return None
        if any(each.parked for each in found.providers.values()):
            return f"a link was parked: {found.failures[0].message if found.failures else 'no error recorded'}"
        time.sleep(DEMO_POLL_SECONDS)
    still_behind = ", ".join(f"{each.behind} at {name}" for name, each in found.providers.items())
    return f"not in sync after {DEMO_STEP_MAX_SECONDS:.0f} s ({still_behind}): run it again with --verbose for details"


def _result(runtime: Runtime, sandbox: SandboxClient, problem: str | None) -> DemoResult:
    with runtime.database.read() as session:
        rows = overview.list_organizations(session, utc_now(), plan=None, search=None, limit=100).organizations
    calls, state = sandbox.calls(), sandbox.state()
    demo_organizations = [
        DemoOrganization(
            organization=row,
            stripe_calls=_count_calls(calls, "stripe", row),
            lago_calls=_count_calls(calls, "lago", row),
        )
        for row in rows
    ]
    total = sandbox.counters()
    return DemoResult(
        organizations=demo_organizations,
        problem=problem or _find_duplicates(rows, state),
        stripe_calls=total.stripe.total,
        lago_calls=total.lago.total,
    )


def _count_calls(calls: Iterable[LoggedCall], provider: str, row: OrganizationReport) -> int:
    """Count the requests that contain the organization's id or one of its customer ids."""
    ids = [row.id, *(link.customer_id for link in row.links.values() if link.customer_id)]
    return sum(
        call.provider == provider and any(one in part for one in ids for part in (call.path, call.query, call.body))
        for call in calls
    )


def _find_duplicates(
    rows: list[OrganizationReport], state: Mapping[str, Mapping[str, list[JsonDocument]]]
) -> str | None:
    """Compare the sandbox with our rows: exactly one customer each, the same ids, and no other customers."""
    at_stripe = sorted(str(each["id"]) for each in state["stripe"]["customers"])
    at_lago = sorted(str(each["lago_id"]) for each in state["lago"]["customers"])
    for name, stored_ids, expected_ids in (
        ("Stripe", at_stripe, sorted(row.links["stripe"].customer_id or "" for row in rows)),
        ("Lago", at_lago, sorted(row.links["lago"].customer_id or "" for row in rows)),
    ):
        if stored_ids != expected_ids:
            counts = f"{len(stored_ids)} customers for {len(expected_ids)} organizations"
            return f"{name} has {counts}; expected exactly one each"
    active = [str(each["external_id"]) for each in state["lago"]["subscriptions"] if each["status"] == "active"]
    if sorted(active) != sorted(row.id for row in rows):
        return f"Lago has {len(active)} active subscriptions for {len(rows)} organizations; expected one each"
    return None
