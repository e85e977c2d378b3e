"""The newest backup: whether there is one, and its age."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from sqlalchemy.exc import DBAPIError

from core.backup import backups
from core.common.clock import utc_now
from core.db.database import DatabaseError
from worker.doctor.findings import DoctorFinding, error, not_checked, not_set, ok, warning
from worker.doctor.inputs import DoctorInputs

# Without BACKUP_DIR: somebody takes them by hand, or by a schedule of their own.
OLD_BACKUP_AGE: Final = timedelta(days=7)
_COMMAND: Final = "`billing-sync backup --to DIR`"


def check(inputs: DoctorInputs) -> list[DoctorFinding]:
    settings = inputs.settings
    try:
        with inputs.open_database() as database, database.read() as session:
            newest = backups.newest(session)
    except (DatabaseError, DBAPIError):
        return [not_checked("backups_unread", "when the last one was taken is in the database, which cannot be read")]
    if newest is None:
        message, advice = "no backup was taken yet", f"{_COMMAND}, or set BACKUP_DIR"
        if settings.backup_dir is None:
            return [not_set("no_backup", message, advice)]
        consequence = "a lost database is lost for good"
        how = "`billing-sync backup`, and look for backup_failed in the log"
        return [warning("no_backup", message, consequence, how)]
    age = utc_now() - newest.taken_at
    message = f"{newest.file}, {newest.size:,} bytes, {age.total_seconds() / 3600:.0f} h ago"
    every = OLD_BACKUP_AGE if settings.backup_dir is None else timedelta(hours=2 * settings.backup_every_hours)
    if age > every:
        return [error("backup_old", message, "what changed since is lost with the database", _COMMAND)]
    return [ok("backup", message)]
