"""Whether a read cache in Redis would be worth it: the reads it would save, compared with a Redis that always hits.

    python -m benchmarks.read_cache [--organizations 10000] [--reads 2000]

One organization as a member sees it and the organizations of one user are read from SQLite, Postgres and Redis, in turn
and at random; then the whole request over HTTP. Everything favors the cache: it always hits, and no membership is
checked. Postgres and Redis are those that DATABASE_URL and REDIS_URL name, else from wheels.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import httpx
import redis
import structlog
from sqlalchemy import select

from api.context import ApiContext
from api.rate_limit import LocalClientRateLimiter
from api.schemas import responses
from api.schemas.responses import OrganizationList, OrganizationResponse
from api.server import ApiServer
from benchmarks import population
from core.access import api_keys
from core.catalog import plans
from core.common.clock import utc_now
from core.db.database import Database
from core.db.models.organizations import Membership
from core.organizations import queries
from tests.support import servers

Read = Callable[[], str]


class ComparedReads:
    """The reads that are compared: each returns the JSON response for a random organization or user."""

    def __init__(self, databases: Mapping[str, Database], cache: redis.Redis, seats: list[tuple[str, str]]) -> None:
        self._databases, self._cache, self._seats = databases, cache, seats

    def fill_cache(self) -> None:
        """Store each organization as a member sees it, and the organizations of each user."""
        database = next(iter(self._databases.values()))
        with self._cache.pipeline(transaction=False) as pipe:
            for org_id, user_id in self._seats:
                pipe.set(f"entry:{org_id}:{user_id}", self._entry(database, org_id, user_id))
                pipe.set(f"seats:{user_id}", self._selector(database, user_id))
            pipe.execute()

    def organization(self) -> dict[str, Read]:
        return {
            **{name: self._entry_from(database) for name, database in self._databases.items()},
            "redis": lambda: self._cached("entry:{}:{}", OrganizationResponse),
        }

    def selector(self) -> dict[str, Read]:
        def of(database: Database) -> Read:
            return lambda: self._selector(database, random.choice(self._seats)[1])  # noqa: S311 - no secret

        return {
            **{name: of(database) for name, database in self._databases.items()},
            "redis": lambda: self._cached("seats:{1}", OrganizationList),
        }

    def _entry_from(self, database: Database) -> Read:
        return lambda: self._entry(database, *random.choice(self._seats))  # noqa: S311

    def _cached(self, key: str, model: type[OrganizationResponse | OrganizationList]) -> str:
        """Read the entry into its model, as any code that uses it must."""
        found = self._cache.get(key.format(*random.choice(self._seats)))  # noqa: S311
        return model.model_validate_json(cast("bytes", found)).model_dump_json()

    @staticmethod
    def _entry(database: Database, org_id: str, user_id: str) -> str:
        with database.read() as session:
            found = queries.find_organization(session, org_id, user_id)
        if found is None:
            raise LookupError(org_id)
        return responses.organization_response(found).model_dump_json()

    @staticmethod
    def _selector(database: Database, user_id: str) -> str:
        with database.read() as session:
            found = [responses.organization_response(entry) for entry in queries.memberships_of_user(session, user_id)]
        return OrganizationList(organizations=found, count=len(found)).model_dump_json()


def measured(readers: Mapping[str, Read], reads: int) -> dict[str, list[float]]:
    """Milliseconds of each read. The readers take turns, so that a slow moment of the machine affects all."""
    milliseconds: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(reads + reads // 10):
        for name, read in readers.items():
            started = time.perf_counter()
            read()
            if number >= reads // 10:
                milliseconds[name].append((time.perf_counter() - started) * 1000)
    return milliseconds


def show(title: str, milliseconds: Mapping[str, list[float]]) -> None:
    print(f"\n{title:<34} {'min':>8} {'median':>8} {'p99':>8} {'max':>8}   ms")
    for name, each in milliseconds.items():
        ranked = sorted(each)
        p99 = ranked[int(len(ranked) * 0.99)]
        print(f"  {name:<32} {ranked[0]:8.3f} {statistics.median(ranked):8.3f} {p99:8.3f} {ranked[-1]:8.3f}")


def requests(databases: Mapping[str, Database], seats: list[tuple[str, str]], stack: ExitStack) -> dict[str, Read]:
    """A service's GET of one organization: the whole time that a caller waits, which includes the read."""
    readers: dict[str, Read] = {}
    for name, database in databases.items():
        with database.write() as session:
            _, key = api_keys.create(session, "benchmark", ["organizations:read"], utc_now())
        context = ApiContext(
            database=database, catalog=plans.load(), clock=utc_now, rate_limiter=LocalClientRateLimiter(1_000_000)
        )
        server = stack.enter_context(ApiServer(context, "127.0.0.1", 0, version="benchmark"))
        headers = {"Authorization": f"Bearer {key}"}
        http = stack.enter_context(httpx.Client(base_url=server.url, headers=headers, trust_env=False))
        readers[name] = _get_organization(http, seats)
    return readers


def _get_organization(http: httpx.Client, seats: list[tuple[str, str]]) -> Read:
    return lambda: http.get(f"/api/organizations/{random.choice(seats)[0]}").raise_for_status().text  # noqa: S311


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--organizations", type=int, default=10_000)
    parser.add_argument("--reads", type=int, default=2_000)
    options = parser.parse_args()
    random.seed(1)
    structlog.configure(processors=[], logger_factory=structlog.ReturnLoggerFactory())
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        server = stack.enter_context(servers.postgres())
        databases = {
            "sqlite": Database(f"sqlite:///{Path(folder) / 'billing-sync.db'}"),
            "postgres": Database(stack.enter_context(servers.database(server))),
        }
        for database in databases.values():
            stack.callback(database.close)
            database.upgrade()
            population.fill(database, options.organizations)
        with databases["sqlite"].read() as session:
            rows = session.execute(select(Membership.org_id, Membership.user_id).limit(200_000)).all()
        seats = [(row[0], row[1]) for row in random.sample(rows, min(1_000, len(rows)))]
        cache = redis.Redis.from_url(stack.enter_context(servers.redis()))
        stack.callback(cache.close)
        reads = ComparedReads(databases, cache, seats)
        reads.fill_cache()
        print(f"{options.organizations} organizations, {len(rows)} memberships; {options.reads} reads of each, in turn")
        show("one organization", measured(reads.organization(), options.reads))
        show("the organizations of one user", measured(reads.selector(), options.reads))
        readers = requests(databases, seats, stack)
        show("a whole request", measured(readers, options.reads // 4))


if __name__ == "__main__":
    main()
