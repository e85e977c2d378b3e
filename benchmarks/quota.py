"""How much of a biller's quota a burst or an import uses, whether it is ever exceeded, and what fresh changes notice.

    python -m benchmarks.quota [--creates 2000] [--workers 4] [--latency-ms 200] [--how import|burst]

Worker processes, relay and beat run as an operator runs them, on a Postgres and a Redis (those that DATABASE_URL and
REDIS_URL name, else from wheels), against the sandbox with its limits on: 25 requests a second an operation at Stripe,
50 a second in all at Lago. Exit code 1 when one of the promises at the end is broken.
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
from tests import servers
from tests.worker.deployment import Deployment, deployment, in_sync, until

CREATE = "POST /v1/customers"
QUOTA = 25.0  # creates a second, by Stripe's published limits (stripe.md 3)
USED_AT_LEAST = 0.95
FRESH_WITHIN = 3.0  # seconds
FRESH_EVERY = 1.0
BYSTANDERS = 30
AT_ONCE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    creates: int
    workers: int = 4
    latency_ms: int = 200
    how: str = "import"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """``used``: of the quota, by all that counts against it while the creates flow, fresh changes' requests included.

    ``fresh``: seconds until a plan change of an organization outside the crowd was applied at a biller.
    """

    creates: int
    seconds: float
    used: float
    throttled: dict[str, int]
    customers: int
    requests: dict[str, int]
    fresh: dict[Provider, list[float]]

    @property
    def problems(self) -> list[str]:
        slowest = max((seconds for all_of in self.fresh.values() for seconds in all_of), default=0.0)
        found = [
            (self.used < USED_AT_LEAST, f"only {self.used:.1%} of the quota was used"),
            (sum(self.throttled.values()) > 0, f"429s were answered: {self.throttled}"),
            (self.customers != self.creates, f"{self.customers} customers for {self.creates} creates"),
            (slowest > FRESH_WITHIN, f"a fresh change took {slowest:.1f} s"),
        ]
        return [sentence for broken, sentence in found if broken]


def measure(url: str, redis_url: str, folder: Path, asked: Crowd) -> Figures:
    """On an empty Postgres and Redis. Raises ``AssertionError`` when the crowd takes far longer than it must."""
    creates = asked.creates
    with ExitStack() as stack:
        sandbox_url = f"http://127.0.0.1:{_free_port()}"
        deployed = stack.enter_context(deployment(url, redis_url, sandbox_url, folder))
        deployed.keep_to_published_limits()
        database = Database(url)
        stack.callback(database.close)
        database.upgrade()
        sandbox = stack.enter_context(_sandbox(deployed, sandbox_url))
        plans = plan_catalog.load()
        _put_on_sale(sandbox_url, plans)
        for process in (*["worker"] * asked.workers, "relay", "beat"):
            deployed.start(process)
        bystanders = _create(database, plans, BYSTANDERS)
        until(lambda: in_sync(database), 60, "the bystanders in sync")
        time.sleep(2.5)  # the buckets are full again, and no link rests
        sandbox.settings(latency_ms=asked.latency_ms)
        sandbox.reset_calls()
        watching = _Bystanders(database, plans, bystanders)
        if asked.how == "import":
            _import(deployed, folder, creates)
        else:
            _create(database, plans, creates)
        watching.start()
        until(lambda: sandbox.counters().stripe.of(CREATE) >= creates, 20 + 3 * creates / QUOTA, "all creates sent")
        watching.stop()
        until(lambda: in_sync(database), 60 + 6 * creates / QUOTA, "all in sync")
        return _figures(sandbox, creates, watching.seconds)


def _figures(sandbox: SandboxClient, creates: int, fresh: dict[Provider, list[float]]) -> Figures:
    calls = sandbox.calls()
    sent = [call.at for call in calls if call.operation == CREATE]
    first, last = min(sent), max(sent)
    # A test mode account's limit is that of one operation, so every request to Stripe takes from the same quota.
    counted = sum(first <= call.at <= last for call in calls if call.provider == "stripe")
    too_many: Counter[str] = Counter(call.operation for call in calls if call.status == 429)
    return Figures(
        creates=creates,
        seconds=last - first,
        used=counted / (QUOTA * (last - first)),
        throttled=dict(too_many),
        customers=len(sandbox.state()["stripe"]["customers"]) - BYSTANDERS,
        requests=dict(Counter(call.operation for call in calls)),
        fresh=fresh,
    )


class _Bystanders:
    """Organizations that are in sync and have nothing to do with the crowd: one after the other changes its plan."""

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
        turn = 0
        while not self._stopping.wait(FRESH_EVERY):
            org_id = self._org_ids[turn % len(self._org_ids)]
            turn += 1
            with self._database.write() as session:
                organization = commands.lock(session, org_id)
                if organization is None:
                    continue
                change = ChangeContext(session, utc_now())
                # A rename for Stripe, which does not charge, and with it a higher plan, or a downgrade, for Lago.
                commands.rename(change, organization, f"Bystander {uuid4()}")
                tiers = self._plans.tiers()
                higher = tiers[min(tiers.index(organization.plan_tier) + 1, len(tiers) - 1)]
                plan_changes.change_plan(change, organization, higher, self._plans)
            self._time(org_id, time.monotonic())

    def _time(self, org_id: str, since: float) -> None:
        waiting = set(PROVIDERS)
        while waiting and time.monotonic() - since < 10 * FRESH_WITHIN:
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


def _create(database: Database, plans: Catalog, many: int) -> list[str]:
    """As many sign-ups, as fast as they can be written."""
    made: list[str] = []
    for start in range(0, many, AT_ONCE):
        with database.write() as session:
            change = ChangeContext(session, utc_now())
            made += [
                commands.create(change, NewOrganization(name=f"{uuid4()}", plan_tier="founders_friend"), plans).id
                for _ in range(start, min(start + AT_ONCE, many))
            ]
    return made


def _import(deployed: Deployment, folder: Path, many: int) -> None:
    file, members = folder / "organizations.json", folder / "org_users.json"
    rows = {
        f"org_{uuid4()}": {"name": f"Old {number}", "created_at": "2025-03-01 10:00:07", "plan_tier": "starter"}
        for number in range(many)
    }
    file.write_text(json.dumps({org: {"id": org, "status": "active", **row} for org, row in rows.items()}))
    members.write_text("{}")
    done = deployed.run("import", str(file), str(members), timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr  # noqa: S101 - a benchmark says what went wrong


def _put_on_sale(sandbox_url: str, plans: Catalog) -> None:
    lago = LagoProvider(sandbox_url, "key", payment_provider_code=None, ending=plans.ending)
    publishing.publish(plans, [lago])
    lago.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


def _sandbox(deployed: Deployment, url: str) -> SandboxClient:
    """A process of its own, so that measuring does not slow it."""
    port = int(url.rsplit(":", 1)[1])
    deployed.start("sandbox", "--port", str(port))

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    until(listens, 30, "the sandbox")
    return SandboxClient(url)


def _lines(figures: Figures) -> Iterator[str]:
    yield f"creates         {figures.creates} in {figures.seconds:.1f} s: {figures.creates / figures.seconds:.2f}/s"
    yield f"quota used      {figures.used:.1%} of {QUOTA:.0f}/s"
    yield f"429             {figures.throttled or 'none'}"
    yield f"customers       {figures.customers}"
    for provider, seconds in figures.fresh.items():
        if seconds:
            ordered = sorted(seconds)
            middle, last = ordered[len(ordered) // 2], ordered[-1]
            yield f"fresh, {provider:8} {len(ordered)} changes: median {middle:.2f} s, slowest {last:.2f} s"
    for operation, many in sorted(figures.requests.items()):
        yield f"  {many:6} {operation}"


def main() -> int:
    parser = argparse.ArgumentParser(description="How much of the quota is used, and never more.")
    parser.add_argument("--creates", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--latency-ms", type=int, default=200)
    parser.add_argument("--how", choices=["import", "burst"], default="import")
    crowd = Crowd(**vars(parser.parse_args()))
    with (
        servers.postgres() as postgres,
        servers.database(postgres) as url,
        servers.redis() as redis_url,
        tempfile.TemporaryDirectory(prefix="quota-") as folder,
    ):
        figures = measure(url, redis_url, Path(folder), crowd)
    for line in _lines(figures):
        print(line)
    for problem in figures.problems:
        print(f"BROKEN: {problem}")
    return 1 if figures.problems else 0


if __name__ == "__main__":
    sys.exit(main())
