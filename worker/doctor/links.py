"""The links that wait for an operator: parked or on hold, by their error."""

from __future__ import annotations

from typing import Final

from sqlalchemy.exc import DBAPIError

from core.common import runbook
from core.db.database import DatabaseError
from core.db.models.billing_links import PAYMENT_BRAKE
from core.ports.spec import Provider
from core.reconcile import charging_moves
from core.reporting import overview
from core.reporting.overview import FailureGroup
from worker.doctor.findings import DoctorFinding, not_checked, not_set, ok, warning
from worker.doctor.inputs import DoctorInputs

STATE_TEXTS: Final = {"parked": "parked", "on_hold": "on hold"}


CHARGING_PAGE: Final = "docs/how-to/change-who-charges.md"


def check(inputs: DoctorInputs) -> list[DoctorFinding]:
    if inputs.sqlite_file is not None and not inputs.sqlite_file.is_file():
        return [not_set("links_absent", "there is no organization yet")]
    try:
        with inputs.open_database() as database, database.read() as session:
            groups = overview.failures_for_operators(session)
            moves = charging_moves.counts_to_move(session, inputs.catalog())
    except (DatabaseError, DBAPIError):
        return [not_checked("links_unread", "they are in the database, which cannot be read")]
    found = [_finding(group) for group in groups] or [ok("links", "no link waits for an operator")]
    return [*found, *(_charged_by_other(to, count) for to, count in moves.items())]


def _charged_by_other(to: Provider, count: int) -> DoctorFinding:
    message = charging_moves.sentence(to, count)
    return warning("charged_by_other", message, "a changed setting moves nobody by itself", CHARGING_PAGE)


def _finding(group: FailureGroup) -> DoctorFinding:
    name = group.provider.title()
    links = "1 link" if group.links == 1 else f"{group.links} links"
    code = group.code or group.kind
    message = f"{name}: {links} {STATE_TEXTS[group.state]}: {code}"
    nothing_sent = f"nothing is sent to {name} for these organizations"
    consequence = "somebody who has left goes on paying" if group.is_end_on_hold else nothing_sent
    command = "brake list" if group.kind == PAYMENT_BRAKE else "parked"
    return warning(f"links_{group.state}", message, consequence, f"`billing-sync {command}`; {runbook.entry(code)}")
