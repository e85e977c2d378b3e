"""How much of a provider's rate limit a burst or an import uses, whether it is exceeded, and how long others wait.

    python -m benchmarks.rate_limits [--creates 2000] [--workers 4] [--latency-ms 200] [--how import|burst]

Worker processes, relay and beat run as an operator runs them, on a Postgres and a Redis (those that DATABASE_URL and
REDIS_URL name, else from wheels), against the sandbox with its limits on: 25 requests a second for an operation at
Stripe, 50 a second in total at Lago. Exit code 1 if a figure misses its target.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from sqlalchemy import select

from core.catalog import plans as plan_catalog
from core.catalog import publishing
from core.catalog.plans import Catalog
from core.common.clock import utc_now
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.events.event_types import ChangeContext
from core.organizations import commands, plan_changes
from core.organizations.commands import NewOrganization
from core.ports.spec import PROVIDERS, Provider
from providers.lago.provider import LagoProvider
from sandbox.client import SandboxClient
from tests.support import servers
from tests.support.deployment import Deployment, deployment, in_sync
from tests.support.waiting import until

CREATE_CUSTOMER = "POST /v1/customers"
CREATES_PER_SECOND_LIMIT = 25.0  # creates a second, by Stripe's published limits (stripe.md 3)
MIN_LIMIT_USED = 0.95
MAX_INTERACTIVE_SECONDS = 3.0
INTERACTIVE_CHANGE_SECONDS = 1.0
BYSTANDER_COUNT = 30
CREATE_BATCH_SIZE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class BurstOptions:
    creates: int
    workers: int = 4
    latency_ms: int = 200
    how: str = "import"


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimitFigures:
    """``limit_used``: share of the rate limit used by all requests during the creates, interactive changes included.

    ``interactive_seconds``: how long a plan change of an organization outside the burst took to be applied.
    """

    creates: int
    seconds: float
    limit_used: float
    throttled: dict[str, int]
    customers: int
    requests: dict[str, int]
    interactive_seconds: dict[Provider, list[float]]

    @property
    def problems(self) -> list[str]:
        slowest = max((seconds for all_of in self.interactive_seconds.values() for seconds in all_of), default=0.0)
        found = [
            (self.limit_used < MIN_LIMIT_USED, f"only {self.limit_used:.1%} of the rate limit was used"),
            (sum(self.throttled.values()) > 0, f"requests got 429: {self.throttled}"),
            (self.customers != self.creates, f"{self.customers} customers for {self.creates} creates"),
            (slowest > MAX_INTERACTIVE_SECONDS, f"an interactive change took {slowest:.1f} s"),
        ]
        return [sentence for broken, sentence in found if broken]


def measure(url: str, redis_url: str, folder: Path, options: BurstOptions) -> RateLimitFigures:
    """Needs an empty Postgres and Redis. Raises ``AssertionError`` if the burst takes far too long."""
    creates = options.creates
    with ExitStack() as stack:
        sandbox_url = f"http://127.0.0.1:{_free_port()}"
        deployed = stack.enter_context(deployment(url, redis_url, sandbox_url, folder))
        deployed.keep_to_published_limits()
        database = Database(url)
        stack.callback(database.close)
        database.upgrade()
        sandbox = stack.enter_context(_sandbox(deployed, sandbox_url))
        plans = plan_catalog.load()
        _publish_plans(sandbox_url, plans)
        for process in (*["worker"] * options.workers, "relay", "beat"):
            deployed.start(process)
        bystanders = _create_organizations(database, plans, BYSTANDER_COUNT)
        until(lambda: in_sync(database), "the bystanders in sync", seconds=60)
        time.sleep(2.5)  # then the buckets are full again, and no link is in its cooldown
        sandbox.settings(latency_ms=options.latency_ms)
        sandbox.reset_calls()
        measured_bystanders = _Bystanders(database, plans, bystanders)
        if options.how == "import":
            _import_organizations(deployed, folder, creates)
        else:
            _create_organizations(database, plans, creates)
        measured_bystanders.start()
        until(
            lambda: sandbox.counters().stripe.of(CREATE_CUSTOMER) >= creates,
            "all creates sent",
            seconds=60 + 3 * creates / CREATES_PER_SECOND_LIMIT,
        )
        measured_bystanders.stop()
        until(lambda: in_sync(database), "all in sync", seconds=60 + 6 * creates / CREATES_PER_SECOND_LIMIT)
        return _figures(sandbox, creates, measured_bystanders.seconds)


def _figures(
    sandbox: SandboxClient, creates: int, interactive_seconds: dict[Provider, list[float]]
) -> RateLimitFigures:
    calls = sandbox.calls()
    sent = [call.at for call in calls if call.operation == CREATE_CUSTOMER]
    first, last = min(sent), max(sent)
    # The limit of a test mode account is that of one operation, so every request to Stripe counts against it.
    counted = sum(first <= call.at <= last for call in calls if call.provider == "stripe")
    too_many: Counter[str] = Counter(call.operation for call in calls if call.status == 429)
    return RateLimitFigures(
        creates=creates,
        seconds=last - first,
        limit_used=counted / (CREATES_PER_SECOND_LIMIT * (last - first)),
        throttled=dict(too_many),
        customers=len(sandbox.state()["stripe"]["customers"]) - BYSTANDER_COUNT,
        requests=dict(Counter(call.operation for call in calls)),
        interactive_seconds=interactive_seconds,
    )


class _Bystanders:
    """Organizations in sync that are not part of the burst. One after the other changes its plan."""

    def __init__(self, database: Database, plans: Catalog, org_ids: list[str]) -> None:
        self.seconds: dict[Provider, list[float]] = {provider: [] for provider in PROVIDERS}
        self._database = database
        self._plans = plans
        self._org_ids = org_ids
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._stopping.wait(INTERACTIVE_CHANGE_SECONDS):
            org_id = self._org_ids[number % len(self._org_ids)]
            number += 1
            with self._database.write() as session:
                organization = commands.lock(session, org_id)
                if organization is None:
                    continue
                change = ChangeContext(session, utc_now())
                # A rename for Stripe, which does not charge, and the next tier for Lago in the same change.
                commands.rename(change, organization, f"Bystander {uuid4()}")
                tiers = self._plans.tiers()
                higher = tiers[min(tiers.index(organization.plan_tier) + 1, len(tiers) - 1)]
                plan_changes.change_plan(change, organization, higher, self._plans)
            self._time(org_id, time.monotonic())

    def _time(self, org_id: str, since: float) -> None:
        waiting = set(PROVIDERS)
        while waiting and time.monotonic() - since < 10 * MAX_INTERACTIVE_SECONDS:
            for provider in self._applied(org_id) & waiting:
                self.seconds[provider].append(time.monotonic() - since)
                waiting.discard(provider)
            time.sleep(0.02)
        for provider in waiting:
            self.seconds[provider].append(time.monotonic() - since)

    def _applied(self, org_id: str) -> set[Provider]:
        with self._database.read() as session:
            rows = session.execute(
                select(BillingLink.provider).where(
                    BillingLink.org_id == org_id, BillingLink.applied_version >= BillingLink.desired_version
                )
            )
            found = {row[0] for row in rows}
        return {provider for provider in PROVIDERS if provider in found}


def _create_organizations(database: Database, plans: Catalog, count: int) -> list[str]:
    """Create organizations as fast as they can be written."""
    org_ids: list[str] = []
    for start in range(0, count, CREATE_BATCH_SIZE):
        with database.write() as session:
            change = ChangeContext(session, utc_now())
            org_ids += [
                commands.create(change, NewOrganization(name=f"{uuid4()}", plan_tier="founders_friend"), plans).id
                for _ in range(start, min(start + CREATE_BATCH_SIZE, count))
            ]
    return org_ids


def _import_organizations(deployed: Deployment, folder: Path, count: int) -> None:
    file, members = folder / "organizations.json", folder / "org_users.json"
    rows = {
        f"org_{uuid4()}": {"name": f"Old {number}", "created_at": "2025-03-01 10:00:07", "plan_tier": "starter"}
        for number in range(count)
    }
    file.write_text(json.dumps({org: {"id": org, "status": "active", **row} for org, row in rows.items()}))
    members.write_text("{}")
    result = deployed.run("import", str(file), str(members), timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr  # noqa: S101 - shows what went wrong


def _publish_plans(sandbox_url: str, plans: Catalog) -> None:
    lago = LagoProvider(sandbox_url, "key", payment_provider_code=None, ending=plans.ending)
    publishing.publish(plans, [lago])
    lago.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def _sandbox(deployed: Deployment, url: str) -> SandboxClient:
    """Start the sandbox as a separate process, so that measuring does not slow it down."""
    port = int(url.rsplit(":", 1)[1])
    deployed.start("sandbox", "--port", str(port))

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    until(listens, "the sandbox", seconds=30)
    return SandboxClient(url)


def _lines(figures: RateLimitFigures) -> Iterator[str]:
    yield f"creates         {figures.creates} in {figures.seconds:.1f} s: {figures.creates / figures.seconds:.2f}/s"
    yield f"limit used      {figures.limit_used:.1%} of {CREATES_PER_SECOND_LIMIT:.0f}/s"
    yield f"429             {figures.throttled or 'none'}"
    yield f"customers       {figures.customers}"
    for provider, seconds in figures.interactive_seconds.items():
        if seconds:
            ordered = sorted(seconds)
            middle, last = ordered[len(ordered) // 2], ordered[-1]
            yield f"interactive, {provider:8} {len(ordered)} changes: median {middle:.2f} s, slowest {last:.2f} s"
    for operation, count in sorted(figures.requests.items()):
        yield f"  {count:6} {operation}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Measures how much of the rate limit is used, and that it is not exceeded."
    )
    parser.add_argument("--creates", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--latency-ms", type=int, default=200)
    parser.add_argument("--how", choices=["import", "burst"], default="import")
    options = BurstOptions(**vars(parser.parse_args()))
    with (
        servers.postgres() as postgres,
        servers.database(postgres) as url,
        servers.redis() as redis_url,
        tempfile.TemporaryDirectory(prefix="rate-limits-") as folder,
    ):
        figures = measure(url, redis_url, Path(folder), options)
    for line in _lines(figures):
        print(line)
    for problem in figures.problems:
        print(f"BROKEN: {problem}")
    return 1 if figures.problems else 0


if __name__ == "__main__":
    sys.exit(main())
