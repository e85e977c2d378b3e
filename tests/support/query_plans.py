"""A large database, and the query plans of its statements."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, event, insert, text
from sqlalchemy.orm import Session

from core.catalog.plans import Catalog
from core.common.names import name_key
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.db.models.events import Event
from core.db.models.organizations import Membership, Organization
from core.organizations.links import new_link

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
MANY = 10_000
FEW = 20


def fill_large(database: Database, plans: Catalog) -> Database:
    """Add ten thousand organizations, of which all but a few are in sync."""
    assert plans
    ids = [f"org_{number}" for number in range(MANY)]
    with database.write() as session:
        session.execute(insert(Organization), [_organization(org_id) for org_id in ids])
        for provider in ("stripe", "lago"):
            done = [{"applied_version": 1 if number >= FEW else 0} for number in range(MANY)]
            rows = [new_link(org_id, provider, NOW, maybe_older=False) for org_id in ids]
            session.execute(insert(BillingLink), [row | extra for row, extra in zip(rows, done, strict=True)])
        seats = [{"org_id": org_id, "user_id": f"user_{number % 3000}"} for number, org_id in enumerate(ids)]
        session.execute(insert(Membership), [{**seat, "role": "member", "joined_at": NOW} for seat in seats])
        session.execute(insert(Event), [_event(number, org_id) for number, org_id in enumerate(ids)])
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    return database


def _organization(org_id: str) -> dict[str, object]:
    return {
        "id": org_id,
        "name": org_id,
        "name_key": name_key(org_id),
        "plan_tier": "starter",
        "status": "active",
        "created_at": NOW,
        "updated_at": NOW,
        "version": 1,
    }


def _event(number: int, org_id: str) -> dict[str, object]:
    return {
        "id": f"e{number}",
        "type": "organization.created",
        "org_id": org_id,
        "actor": "system",
        "source": "test",
        "data": {},
        "occurred_at": NOW,
        "published_at": NOW if number >= FEW else None,
    }


def plans_of(database: Database, work: Callable[[Session], object]) -> str:
    """The query plans of all statements of ``work``, with the values that they ran with."""
    sent: list[tuple[str, Any]] = []

    def note(_connection: Connection, _cursor: object, statement: str, parameters: Any, *_: object) -> None:  # noqa: ANN401 - the driver's own
        if statement.startswith(("SELECT", "UPDATE", "WITH")):
            sent.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        with database.write() as session:
            work(session)
    finally:
        event.remove(database.engine, "before_cursor_execute", note)
    explain = "EXPLAIN QUERY PLAN " if database.is_sqlite else "EXPLAIN "
    with database.engine.connect() as connection:
        found = [connection.exec_driver_sql(explain + statement, values).all() for statement, values in sent]
    assert found
    return str(found)


def _email(number: int) -> dict[str, object]:
    return {
        "id": f"m{number}",
        "cause": f"e{number}",
        "kind": "welcome",
        "recipient": "a@acme.test",
        "org_id": f"org_{number}" if number >= FEW else "org_0",
        "after_version": 1 if number == 1 else None,
        "state": "sent" if number >= FEW else "active",
        "attempts": 0,
        "next_attempt_at": NOW,
        "created_at": NOW,
    }
