"""Organizations in and out, and the schema they live in."""

from __future__ import annotations

from typing import Annotated

import typer

from core import reports
from core.clock import utc_now
from core.database import Database
from core.reports import OrganizationReport
from worker import settings as settings_of
from worker.cli import opening, tables, words
from worker.cli.tables import Column


def orgs(
    *,
    plan: Annotated[str | None, typer.Option(help="Only those on this plan, or on their way to it.")] = None,
    search: Annotated[str | None, typer.Option(help="Only names that contain this.")] = None,
    limit: tables.Limit = 50,
    as_json: tables.AsJson = False,
) -> None:
    """List organizations with their plan, their ids at both billers, and whether they are in sync.

    JSON: {"total", "organizations": [{"id", "name", "plan_tier", "pending_plan_tier", "plan_effective_at", "status",
    "members", "created_at", "updated_at", "in_sync", "links": {"stripe": …, "lago": …}}]}; a link as in `status`.
    """
    now = utc_now()
    with opening.store() as database, database.read() as session:
        page = reports.organizations(session, now, plan=plan, search=search, limit=limit)
    if as_json:
        tables.show_json(
            {"total": page.total, "organizations": [words.organization(each) for each in page.organizations]}
        )
        return
    if not page.total:
        tables.show(
            "No organization matches." if plan or search else "No organizations yet: `billing-sync import` brings some."
        )
        return
    tables.show(tables.table(page.organizations, _COLUMNS), tables.how_many(len(page.organizations), page.total))


def upgrade() -> None:
    """Bring the database's schema to this version's."""
    settings = settings_of.read()
    opening.make_folder(settings)
    database = Database(settings.database)
    try:
        database.upgrade()
    finally:
        database.close()
    tables.show("The database schema is up to date.")


def _name(row: OrganizationReport) -> str:
    return row.name if row.status == "active" else f"{row.name} ({row.status})"


_COLUMNS: list[Column[OrganizationReport]] = [
    Column("organization", _name, kind="fold", most=32),
    Column("id", lambda row: row.id, kind="id"),
    Column("plan", lambda row: words.plan(row.plan_tier, row.pending_plan_tier, "\n")),
    Column("Stripe", lambda row: words.id_at(row, "stripe"), kind="id"),
    Column("Lago", lambda row: words.id_at(row, "lago"), kind="id"),
    Column("in sync", lambda row: words.standing(row.links.values())),
]
