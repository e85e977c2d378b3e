"""Locks for periodic jobs: one process runs a job at a time, and every lock has an end."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import uuid4

from sqlalchemy import update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from core.db.models.jobs import JobLock


def acquire(session: Session, name: str, seconds: float, now: datetime) -> bool:
    """Whether this caller may run the periodic job now; nobody else may for ``seconds``."""
    values = {"name": name, "lease_token": str(uuid4()), "lease_until": now + timedelta(seconds=seconds)}
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    statement = dialect.insert(JobLock).values(values)
    acquired = session.execute(
        statement.on_conflict_do_update(
            index_elements=[JobLock.name],
            set_={"lease_token": statement.excluded.lease_token, "lease_until": statement.excluded.lease_until},
            where=JobLock.lease_until < now,
        ).returning(JobLock.name)
    ).one_or_none()
    return acquired is not None


def release_until(session: Session, name: str, until: datetime) -> None:
    """The job is over: the next one may take it from then on."""
    session.execute(update(JobLock).where(JobLock.name == name).values(lease_token=None, lease_until=until))
