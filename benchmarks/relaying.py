"""Messages a second that the relay publishes, compared with Celery's own publishing of the same messages.

    python -m benchmarks.relaying [--organizations 2000]

Each new organization is one event and two messages. No worker receives them; the broker is emptied after each run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

from redis import Redis

from benchmarks.comparison import Comparison, print_results, run_interleaved
from benchmarks.throughput import CHANGE_BATCH_SIZE
from core.catalog import plans as plan_catalog
from core.catalog.plans import DEFAULT_PLANS_FILE
from core.common.clock import utc_now
from core.db.database import Database
from core.events.event_types import ChangeContext
from core.organizations import commands
from core.organizations.commands import NewOrganization
from tasks.base import BillingApp
from tasks.routing import SYNC_TO_LAGO, SYNC_TO_STRIPE
from tests.support import servers
from worker.config.settings import Settings
from worker.processes.relay import Relay
from worker.wiring import celery_app, logging

MIN_RELAY_RATIO = 0.8
RUNS = 3
# So high that the changes are no burst: a burst is left to the sweep, and the relay would publish nothing.
UNLIMITED_RATE = 1_000_000.0


def measure(postgres: str, redis_url: str, organizations_: int) -> Comparison:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relaying-")))
        url = stack.enter_context(servers.database(postgres))
        database = Database(url)
        stack.callback(database.close)
        database.upgrade()
        settings = _settings(url, redis_url, folder)
        logging.configure(settings)
        app = celery_app.build(settings)
        stack.callback(app.close_runtime)
        redis = stack.enter_context(Redis.from_url(redis_url))

        def ours() -> float:
            _sign_up(database, organizations_)
            relay = Relay(app, database)
            started = time.monotonic()
            events = 0
            while found := relay.relay_once():
                events += found
            rate = 2 * events / (time.monotonic() - started)
            redis.flushdb()
            return rate

        def bare() -> float:
            org_ids = [f"org_{uuid4()}" for _ in range(organizations_)]
            started = time.monotonic()
            _publish(app, org_ids)
            rate = 2 * organizations_ / (time.monotonic() - started)
            redis.flushdb()
            return rate

        ours()
        figures, baseline = run_interleaved(RUNS, ours, bare)
    return Comparison(
        name="messages relayed",
        unit="/s",
        figures=figures,
        baseline=baseline,
        against="send_task",
        target=MIN_RELAY_RATIO,
    )


def _publish(app: BillingApp, org_ids: list[str]) -> None:
    for org_id in org_ids:
        for task, queue in ((SYNC_TO_STRIPE, "stripe"), (SYNC_TO_LAGO, "lago")):
            app.send_task(task, args=[org_id], argsrepr=f"({org_id})", queue=queue)


def _sign_up(database: Database, count: int) -> None:
    plans = plan_catalog.load()
    for start in range(0, count, CHANGE_BATCH_SIZE):
        with database.write() as session:
            change = ChangeContext(session, utc_now())
            for _ in range(start, min(start + CHANGE_BATCH_SIZE, count)):
                commands.create(change, NewOrganization(name=f"{uuid4()}", plan_tier="starter"), plans)


def _settings(url: str, redis_url: str, folder: Path) -> Settings:
    return Settings.model_validate(
        {
            "data_dir": folder,
            "log_level": "WARNING",
            "database_url": url,
            "redis_url": redis_url,
            "celery_broker_url": redis_url,
            "plans_file": DEFAULT_PLANS_FILE,
            "stripe_secret_key": "sk_test_nobody",
            "stripe_api_base": "http://127.0.0.1:1",
            "lago_api_key": "nobody",
            "lago_api_url": "http://127.0.0.1:1",
            "lago_stripe_provider_code": "stripe_main",
            "stripe_rate_limit": UNLIMITED_RATE,
            "stripe_operation_rate_limit": UNLIMITED_RATE,
            "lago_rate_limit": UNLIMITED_RATE,
        }
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Measures messages relayed a second, compared with Celery's own publishing."
    )
    parser.add_argument("--organizations", type=int, default=2000)
    options = parser.parse_args()
    with servers.postgres() as postgres, servers.redis() as redis_url:
        return print_results([measure(postgres, redis_url, options.organizations)])


if __name__ == "__main__":
    sys.exit(main())
