"""A large database of organizations that both providers have, written by SQL alone: a million in a few minutes.

The rows are those that an import and a sync leave, without events: organizations, their members and links in sync.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from sqlalchemy import text

from core.db.database import Database
from tests.support import servers

FIRST_ORGANIZATION_NUMBER = 100_000_000_000
"""The first number that the twelve digits at the end of an organization's id show."""
ORGANIZATION_BATCH_SIZE = 20_000

_ORGANIZATIONS = """
    INSERT INTO organizations (id, name, name_key, plan_tier, status, created_at, updated_at, version)
    WITH RECURSIVE numbers(n) AS (
        SELECT CAST(:start AS bigint) UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < CAST(:stop AS bigint)
    )
    SELECT 'org_00000000-0000-4000-8000-' || CAST(CAST(:first AS bigint) + n AS text),
           'Organization ' || CAST(n AS text), 'organization ' || CAST(n AS text),
           CASE n % 2 WHEN 0 THEN 'founders_friend' ELSE 'starter' END, 'active',
           CURRENT_TIMESTAMP, CURRENT_TIMESTAMP, 1
    FROM numbers
"""
_LINKS = """
    INSERT INTO billing_links (org_id, provider, customer_id, desired_version, applied_version, customer_state,
                               customer_fingerprint, plan_state,
                               synced_at, state, attempts, next_sweep_at, generation, created_at)
    WITH RECURSIVE numbers(n) AS (
        SELECT CAST(:start AS bigint) UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < CAST(:stop AS bigint)
    )
    SELECT 'org_00000000-0000-4000-8000-' || CAST(CAST(:first AS bigint) + n AS text), CAST(:provider AS text),
           CAST(:prefix AS text) || CAST(n AS text), 1, 1, 'applied', '-', 'unknown', CURRENT_TIMESTAMP, 'active', 0,
           CURRENT_TIMESTAMP, 1, CURRENT_TIMESTAMP
    FROM numbers
"""
_MEMBERS = """
    INSERT INTO memberships (org_id, user_id, role, joined_at)
    WITH RECURSIVE numbers(n) AS (
        SELECT CAST(:start AS bigint) UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < CAST(:stop AS bigint)
    ), seats(seat) AS (
        SELECT CAST(0 AS bigint) UNION ALL SELECT seat + 1 FROM seats WHERE seat + 1 < CAST(:seats AS bigint)
    )
    SELECT 'org_00000000-0000-4000-8000-' || CAST(CAST(:first AS bigint) + n AS text),
           'user_' || CAST((n * 7 + seat * 13) % CAST(:people AS bigint) AS text) || '_' || CAST(seat % 3 AS text),
           CASE seat WHEN 0 THEN 'owner' WHEN 1 THEN 'billing_admin' ELSE 'member' END, CURRENT_TIMESTAMP
    FROM numbers, seats
"""


def org_id(number: int) -> str:
    return f"org_00000000-0000-4000-8000-{FIRST_ORGANIZATION_NUMBER + number}"


def user_id(number: int) -> str:
    """A user who is a member of three or four organizations."""
    return f"user_{number}_0"


@contextmanager
def populated(postgres: str, organizations: int, seats: int) -> Iterator[str]:
    """The URL of a new, populated database."""
    with servers.database(postgres) as url:
        populate(url, organizations, seats)
        yield url


def populate(url: str, organizations: int, seats: int) -> None:
    """Create the schema in an empty database and fill it."""
    with closing(Database(url)) as database:
        database.upgrade()
        fill(database, organizations, seats)


def fill(database: Database, organizations: int, seats: int = 10) -> None:
    for start in range(0, organizations, ORGANIZATION_BATCH_SIZE):
        numbers = {
            "first": FIRST_ORGANIZATION_NUMBER,
            "start": start,
            "stop": min(start + ORGANIZATION_BATCH_SIZE, organizations),
        }
        with database.engine.begin() as connection:
            connection.execute(text(_ORGANIZATIONS), numbers)
            for provider, prefix in (("stripe", "cus_"), ("lago", "lago-")):
                connection.execute(text(_LINKS), {**numbers, "provider": provider, "prefix": prefix})
            connection.execute(text(_MEMBERS), {**numbers, "seats": seats, "people": organizations})
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # As on a server that has run for a while: otherwise the first reader would pay for rows never vacuumed.
        connection.execute(text("ANALYZE" if database.is_sqlite else "VACUUM (ANALYZE)"))


def read_into_memory(url: str) -> None:
    """Load the database into the system's memory, where data in daily use is, so that no disk read is measured.

    The user must be allowed to create Postgres' own extension ``pg_prewarm``.
    """
    with closing(Database(url)) as database, database.engine.begin() as connection:
        connection.execute(text("SET LOCAL statement_timeout = '10min'"))
        connection.execute(text("CREATE EXTENSION IF NOT EXISTS pg_prewarm"))
        connection.execute(
            text(
                "SELECT sum(pg_prewarm(oid, 'read')) FROM pg_class"
                " WHERE relkind IN ('r', 'i') AND relnamespace = 'public'::regnamespace"
            )
        )
