"""Locks for periodic jobs: one process runs a job at a time, and every lock expires."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from core.db import leases
from core.db.models.jobs import JobLock


def acquire(session: Session, name: str, seconds: float, now: datetime) -> bool:
    """Whether this caller may run the periodic job now. If so, no other caller may for ``seconds``."""
    values = {"name": name, **leases.acquired(leases.new_token(), now + timedelta(seconds=seconds))}
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    statement = dialect.insert(JobLock).values(values)
    acquired = session.execute(
        statement.on_conflict_do_update(
            index_elements=[JobLock.name],
            set_=leases.acquired(statement.excluded.lease_token, statement.excluded.lease_until),
            where=leases.is_free(JobLock, now),
        ).returning(JobLock.name)
    ).one_or_none()
    return acquired is not None


def release_until(session: Session, name: str, until: datetime) -> None:
    """Release the lock: the job may be run again from ``until`` on."""
    session.execute(update(JobLock).where(JobLock.name == name).values(lease_token=None, lease_until=until))
