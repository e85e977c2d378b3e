"""``backups.take``: a backup every BACKUP_EVERY_HOURS, by one worker at a time."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Final

import structlog
from celery import shared_task

from core.backup import backups
from core.backup.backups import TakenBackup
from core.backup.contents import BackupError
from core.backup.postgres_dump import MAX_DUMP_SECONDS
from core.db import job_locks
from tasks.base import BillingApp, BillingTask
from tasks.routing import TAKE_BACKUP

log = structlog.get_logger()

BACKUP_TICK_SECONDS: Final = 60.0
# After a failure, such as a full disk.
BACKUP_RETRY: Final = timedelta(minutes=15)


@shared_task(bind=True, base=BillingTask, name=TAKE_BACKUP)
def take(self: BillingTask, folder: str, every_hours: float, keep: str) -> None:
    """``keep``: an age such as ``30d``."""
    app = self.app
    if isinstance(app, BillingApp):
        with self.with_database_retry():
            run(app, Path(folder), timedelta(hours=every_hours), backups.parse_age(keep))


def run(app: BillingApp, folder: Path, every: timedelta, keep: timedelta) -> TakenBackup | None:
    """Take one if it is due. After a worker was killed meanwhile, the next one is due once no dump may be running."""
    database, now = app.runtime.database, app.runtime.clock()
    with database.write() as session:
        if not job_locks.acquire(session, TAKE_BACKUP, MAX_DUMP_SECONDS, now):
            return None
        # By the folder: a backup that somebody took elsewhere is none of these.
        last = next(backups.listed(folder), None)
        if last is not None and now - every < backups.taken_at(last) <= now:
            job_locks.release_until(session, TAKE_BACKUP, now)
            return None
    taken = None
    try:
        taken = backups.take(database, folder, now, keep)
        log.info("backup_taken", file=taken.path.name, size=taken.manifest.size, deleted=len(taken.deleted))
    except BackupError as error:
        log.error("backup_failed", error=str(error))  # noqa: TRY400 - the sentence says it
    finally:
        with database.write() as session:
            ended_at = app.runtime.clock()
            job_locks.release_until(session, TAKE_BACKUP, ended_at if taken is not None else ended_at + BACKUP_RETRY)
    return taken
