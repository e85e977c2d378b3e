"""Requests of a drift check of some organizations among those of another deployment in the same account.

    python -m benchmarks.drift [--own 1000] [--others 5000]

Compared with a check of as many organizations that are all our own. Both read the same sandbox.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from benchmarks import population
from benchmarks.comparison import Comparison, print_results
from core.catalog import plans as plan_catalog
from core.catalog import publishing
from core.catalog.plans import Catalog
from core.common.clock import utc_now
from core.compare.desired_state import PayerPolicy
from core.db.database import Database
from core.drift.detector import DriftDetector
from core.ports.provider import BillingProvider
from core.ports.spec import Provider
from core.reconcile.account_guard import AccountGuard
from core.reconcile.reconciler import Reconciler
from providers.lago.provider import LagoProvider
from providers.stripe.provider import StripeProvider
from sandbox.client import SandboxClient
from sandbox.server import Sandbox

MAX_REQUEST_RATIO = 1.2
BATCH_SIZE = 500


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--own", type=int, default=1000)
    parser.add_argument("--others", type=int, default=5000)
    options = parser.parse_args()
    return print_results([compare(options.own, options.others)])


def compare(own: int, others: int) -> Comparison:
    catalog = plan_catalog.load()
    with (
        tempfile.TemporaryDirectory(prefix="drift-") as folder,
        Sandbox(limits=False) as sandbox,
        SandboxClient(sandbox.url) as client,
    ):
        providers: dict[Provider, BillingProvider] = {
            "stripe": StripeProvider("sk_test_sandbox", sandbox.url, ending=catalog.ending),
            "lago": LagoProvider(sandbox.url, "sandbox", payment_provider_code=None, ending=catalog.ending),
        }
        try:
            publishing.publish(catalog, providers.values())
            _fill(client, own + others, catalog)
            found = [
                _requests(Path(folder) / f"{count}.db", count, providers, catalog, client)
                for count in (own, own + others)
            ]
        finally:
            for provider in providers.values():
                provider.close()
    return Comparison(
        name=f"requests of a drift check of {own:,} organizations among {others:,} of another deployment",
        unit="requests",
        figures=[found[0]],
        baseline=[found[1]],
        against=f"{own + others:,} of our own",
        target=MAX_REQUEST_RATIO,
        smaller_is_better=True,
    )


def _fill(client: SandboxClient, count: int, catalog: Catalog) -> None:
    """Customers and subscriptions as they are after a sync of ``population.fill``."""
    for start in range(0, count, BATCH_SIZE):
        numbers = range(start, min(start + BATCH_SIZE, count))
        client.preload_stripe_customers(
            {"id": f"cus_{n}", "name": f"Organization {n}", "metadata": {"billing_sync_org_id": population.org_id(n)}}
            for n in numbers
        )
        client.preload_lago_customers(
            {"lago_id": f"lago-{n}", "external_id": population.org_id(n), "name": f"Organization {n}"} for n in numbers
        )
        for n in numbers:
            tier = "starter" if n % 2 else "founders_friend"
            code = catalog.plan(tier).lago_plan_code
            client.preload_lago_subscription(population.org_id(n), code, population.org_id(n))


def _requests(
    file: Path, count: int, providers: dict[Provider, BillingProvider], catalog: Catalog, client: SandboxClient
) -> float:
    """The requests of a check of the first ``count`` organizations, which must find nothing about them."""
    population.populate(f"sqlite:///{file}", count, seats=1)
    with closing(Database(f"sqlite:///{file}")) as database:
        guard = AccountGuard(database=database, providers=providers, clock=utc_now)
        guard.confirm()
        reconciler = Reconciler(
            database=database,
            providers=providers,
            catalog=catalog,
            policy=PayerPolicy(),
            clock=utc_now,
            account_guard=guard,
        )
        client.reset_calls()
        report = DriftDetector.for_reconciler(reconciler).check()
        counters = client.counters()
    if set(report.counts.kinds) - {"unknown_customer"}:
        message = f"the check of {count} organizations found {report.counts.kinds}"
        raise RuntimeError(message)
    return counters.stripe.total + counters.lago.total


if __name__ == "__main__":
    sys.exit(main())
