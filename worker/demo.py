"""The whole thing in front of your eyes: an embedded billing-sync and its sandbox, in a folder that is thrown away.

Organizations of the old store are imported, two of them with customers that the billers know already; one more is
created, renamed, upgraded and downgraded. What is shown at the end is read from the rows and counted by the sandbox:
one customer each, or the demo has failed. Nothing of the environment is used: no key, no server, no setting.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from core.catalog import plans as plan_catalog
from core.common.clock import utc_now
from core.db.database import Database
from core.db.models.organizations import Organization
from core.events.event_types import Cause, Change
from core.organizations import commands, plan_changes
from core.organizations.commands import NewOrganization
from core.predecessor.files import OldMember, OldOrganization, Place, write_members, write_organizations
from core.predecessor.importing import import_files
from core.reporting import overview
from core.reporting.overview import OrganizationReport
from sandbox.client import Call, SandboxClient
from sandbox.http import Doc
from tasks.base import Runtime
from worker.config.settings import Settings
from worker.processes.embedded import Embedded

LONGEST_WAIT: Final = 45.0  # seconds for each step
LOOK_EVERY: Final = 0.05
BY_DEMO: Final = Cause(actor="demo")

Say = Callable[[str], None]
Step = Callable[[Change, Organization], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One organization at the end: its row, and the calls that it cost at each biller."""

    organization: OrganizationReport
    stripe_calls: int
    lago_calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """``problem`` None: all in sync, and exactly one customer each."""

    shown: list[Shown]
    problem: str | None
    stripe_calls: int
    lago_calls: int


def run(say: Say) -> Result:
    """Tell the story to ``say``, a line a step. Ends within a few minutes, whatever happens."""
    with tempfile.TemporaryDirectory(prefix="billing-sync-demo-") as folder:
        place = Path(folder)
        with Embedded(_settings(place)) as running, SandboxClient(running.sandbox_url or "") as sandbox:
            say(f"A billing-sync and a sandbox of Stripe and Lago run at {running.sandbox_url}")
            sandbox.reset_calls()
            runtime = running.app.runtime
            problem = _tell(runtime, sandbox, place, say)
            return _result(runtime, sandbox, problem)


def _settings(folder: Path) -> Settings:
    """Built without the environment: a key that is set there must not be met."""
    return Settings.model_construct(data_dir=folder, plans_file=plan_catalog.DEFAULT_FILE, worker_concurrency=4)


def _tell(runtime: Runtime, sandbox: SandboxClient, folder: Path, say: Say) -> str | None:
    """Every step waits until both billers match; returns what went wrong first."""
    started = time.monotonic()
    found = _import(runtime, sandbox, folder)
    problem = _until_in_sync(runtime.database)
    say(f"Imported {found}")
    say(f"Both billers match after {time.monotonic() - started:.1f} s")
    with runtime.database.write() as session:
        new = NewOrganization(name="Northwind", plan_tier=runtime.catalog.tiers()[0])
        org_id = commands.create(Change(session, utc_now(), BY_DEMO), new, runtime.catalog).id
    problem = problem or _until_in_sync(runtime.database)
    say("Created Northwind: a customer at Stripe, a customer and a subscription at Lago")
    for sentence, step in _steps(runtime):
        if problem is None:
            _change(runtime, org_id, step)
            problem = _until_in_sync(runtime.database)
            say(sentence)
    return problem


def _steps(runtime: Runtime) -> Iterable[tuple[str, Step]]:
    plans = runtime.catalog
    tiers = plans.tiers()
    high, low = tiers[-1], tiers[len(tiers) // 2 - 1]

    def rename(change: Change, organization: Organization) -> None:
        commands.rename(change, organization, "Northwind Traders")

    def upgrade(change: Change, organization: Organization) -> None:
        plan_changes.change_plan(change, organization, high, plans)

    def downgrade(change: Change, organization: Organization) -> None:
        plan_changes.change_plan(change, organization, low, plans)

    yield "Renamed it to Northwind Traders", rename
    yield f"Upgraded it to {high}: at once", upgrade
    yield f"Downgraded it to {low}: at the end of the period it has paid for", downgrade


def _change(runtime: Runtime, org_id: str, step: Step) -> None:
    with runtime.database.write() as session:
        organization = commands.lock(session, org_id)
        if organization is not None:
            step(Change(session, utc_now(), BY_DEMO), organization)


def _import(runtime: Runtime, sandbox: SandboxClient, folder: Path) -> str:
    """The old store's files, with what the billers hold of them already; returns what was found in them."""
    old = _old_organizations(runtime.catalog.tiers())
    known = [each for each in old if each.stripe_customer_id]
    sandbox.preload_stripe_customers({"id": each.stripe_customer_id, "name": each.name} for each in known)
    sandbox.preload_lago_customers(
        {"lago_id": each.lago_customer_id, "external_id": each.id, "name": each.name} for each in known
    )
    orgs_file, users_file = folder / "organizations.json", folder / "org_users.json"
    write_organizations(orgs_file, old)
    write_members(users_file, ((each.id, _old_members(each)) for each in old))
    report = import_files(runtime.database, runtime.catalog, utc_now, orgs_file, users_file)
    return (
        f"{report.organizations.new} organizations with {report.members.new} members, "
        f"{len(known)} of them known to the billers"
    )


_HERE: Final = Place("the demo", 0, 0)
_WRITTEN: Final = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
# Name, Lago's id, Stripe's id: the first two have been customers for long.
_OLD: Final[tuple[tuple[str, str | None, str | None], ...]] = (
    ("Acme Corporation", "5d2c8f10-0000-4000-8000-000000000001", "cus_AcmeSince2024"),
    ("Pro Tech Inc", "a7e90b42-0000-4000-8000-000000000002", "cus_ProTechSince25"),
    ("Zürich Analytics", None, None),
    ("Blue Harbor Foods", None, None),
    ("Kite & Sons", None, None),
)


def _old_organizations(tiers: list[str]) -> list[OldOrganization]:
    return [
        OldOrganization(
            id=f"org_5e1f0c00-7a11-4000-8000-{number:012d}",
            name=name,
            created_at=_WRITTEN + timedelta(days=number),
            plan_tier=tiers[number % len(tiers)],
            lago_customer_id=lago_id,
            stripe_customer_id=stripe_id,
            status="active",
            place=_HERE,
        )
        for number, (name, lago_id, stripe_id) in enumerate(_OLD)
    ]


def _old_members(organization: OldOrganization) -> list[OldMember]:
    return [
        OldMember(org_id=organization.id, user_id=user, role=role, joined_at=organization.created_at, place=_HERE)
        for user, role in (("user_alice", "owner"), ("user_bob", "member"))
    ]


def _until_in_sync(database: Database) -> str | None:
    """Wait until nothing is left to do; returns why that did not come."""
    until = time.monotonic() + LONGEST_WAIT
    while time.monotonic() < until:
        with database.read() as session:
            now = overview.overview(session)
        if now.in_sync:
            return None
        if any(each.parked for each in now.billers.values()):
            return f"a change was parked: {now.troubles[0].message if now.troubles else 'no reason was kept'}"
        time.sleep(LOOK_EVERY)
    waited = ", ".join(f"{each.behind} at {name}" for name, each in now.billers.items())
    return f"not in sync after {LONGEST_WAIT:.0f} s ({waited}): run it again with --verbose to see why"


def _result(runtime: Runtime, sandbox: SandboxClient, problem: str | None) -> Result:
    with runtime.database.read() as session:
        rows = overview.organizations(session, utc_now(), plan=None, search=None, limit=100).organizations
    calls, state = sandbox.calls(), sandbox.state()
    shown = [
        Shown(
            organization=row,
            stripe_calls=_count(calls, "stripe", row),
            lago_calls=_count(calls, "lago", row),
        )
        for row in rows
    ]
    total = sandbox.counters()
    return Result(
        shown=shown,
        problem=problem or _doubled(rows, state),
        stripe_calls=total.stripe.total,
        lago_calls=total.lago.total,
    )


def _count(calls: Iterable[Call], provider: str, row: OrganizationReport) -> int:
    """Calls that were about this organization: its id or one of its customer's ids is in them."""
    ids = [row.id, *(link.customer_id for link in row.links.values() if link.customer_id)]
    return sum(
        call.provider == provider and any(one in part for one in ids for part in (call.path, call.query, call.body))
        for call in calls
    )


def _doubled(rows: list[OrganizationReport], state: Mapping[str, Mapping[str, list[Doc]]]) -> str | None:
    """What the sandbox holds, against what the rows say: one customer each, the same one, and nobody else."""
    at_stripe = sorted(str(each["id"]) for each in state["stripe"]["customers"])
    at_lago = sorted(str(each["lago_id"]) for each in state["lago"]["customers"])
    for name, held, known in (
        ("Stripe", at_stripe, sorted(row.links["stripe"].customer_id or "" for row in rows)),
        ("Lago", at_lago, sorted(row.links["lago"].customer_id or "" for row in rows)),
    ):
        if held != known:
            return f"{name} holds {len(held)} customers for {len(known)} organizations; it must be exactly one each"
    active = [str(each["external_id"]) for each in state["lago"]["subscriptions"] if each["status"] == "active"]
    if sorted(active) != sorted(row.id for row in rows):
        return f"Lago holds {len(active)} active subscriptions for {len(rows)} organizations; it must be one each"
    return None
