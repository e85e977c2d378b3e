"""The processes that were seen in the last minute: all kinds that the work needs, in one version."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sqlalchemy.exc import DBAPIError

from core.common.clock import utc_now
from core.db.database import DatabaseError, is_read_only
from core.reporting import heartbeats
from core.reporting.heartbeats import RunningProcess
from worker.doctor.findings import DoctorFinding, error, not_checked, not_set, ok, warning
from worker.doctor.inputs import DoctorInputs

WAITS_WITHOUT: Final = {
    "worker": "changes stay in the database and reach no provider",
    "relay": "no committed event is published, so nothing is synced at once",
    "beat": "nothing looks for due links: retries, scheduled plans and emails wait",
}


def check(inputs: DoctorInputs) -> list[DoctorFinding]:
    try:
        with inputs.open_database() as database, database.read() as session:
            processes, unstored = heartbeats.running(session, utc_now()), is_read_only(session)
    except (DatabaseError, DBAPIError):
        if inputs.sqlite_file is not None and not inputs.sqlite_file.is_file():
            return [not_set("nothing_started", "nothing has run here yet", "`billing-sync up`")]
        return [not_checked("processes_unread", "their heartbeats are in the database, which cannot be read")]
    if unstored:
        return [not_checked("processes_unread", "a read-only database stores no heartbeat")]
    found = list(_missing(processes, needs_up=inputs.uses_up))
    found += _versions(processes, inputs.version)
    if any(each.level in {"error", "warning"} for each in found):
        return found
    counts = ", ".join(f"{number} {kind}" for kind, number in heartbeats.count_by_kind(processes).items())
    return [ok("processes", f"{counts} in the last minute, version {inputs.version}"), *found]


def _missing(processes: list[RunningProcess], *, needs_up: bool) -> Iterator[DoctorFinding]:
    kinds = {process.kind for process in processes}
    if needs_up:
        if "up" not in kinds:
            consequence = "changes stay in the database and reach no provider"
            yield warning("no_up", "`up` was not seen in the last minute", consequence, "`billing-sync up`")
        return
    for kind, consequence in WAITS_WITHOUT.items():
        if kind not in kinds:
            message = f"no {kind} was seen in the last minute"
            yield error(f"no_{kind}", message, consequence, f"`billing-sync {kind}`")
    if "api" not in kinds:
        yield not_set("no_api", "no API was seen in the last minute", "if you need HTTP: `billing-sync api`")


def _versions(processes: list[RunningProcess], version: str) -> Iterator[DoctorFinding]:
    others = sorted({f"{each.kind} {each.version}" for each in processes if each.version != version})
    if others:
        yield warning(
            "versions_differ",
            f"this is version {version}, and there runs {', '.join(others)}",
            "an older process may refuse the schema, or sync by older rules",
            "install one version everywhere, then restart each process, for example `billing-sync worker`",
        )
