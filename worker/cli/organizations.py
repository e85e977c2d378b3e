"""The list of organizations, and the upgrade of the database schema."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from core.common.clock import utc_now
from core.reporting import overview
from core.reporting.overview import LinkFilter, OrganizationReport
from worker.cli import descriptions, output, resources
from worker.cli.output import Column
from worker.config import settings as settings_of
from worker.wiring.database import check_direct_url, connect, connect_directly


def orgs(  # noqa: PLR0913 - each is one option
    *,
    plan: Annotated[str | None, typer.Option(help="Only those on this plan or scheduled for it.")] = None,
    search: Annotated[str | None, typer.Option(help="Only names that contain this.")] = None,
    parked: Annotated[bool, typer.Option("--parked", help="Only those with a parked link, or one on hold.")] = False,
    behind: Annotated[bool, typer.Option("--behind", help="Only those that a provider has not got yet.")] = False,
    unpaid: Annotated[bool, typer.Option("--unpaid", help="Only those with a payment problem.")] = False,
    credit: Annotated[
        bool, typer.Option("--credit", help="Only those with credit that no invoice will use, deleted ones included.")
    ] = False,
    limit: output.LimitOption = 50,
    as_json: output.JsonOption = False,
) -> None:
    """List organizations with their plan, their ids at both providers, and whether they are in sync.

    JSON: {"total", "organizations": [{"id", "name", "plan_tier", "pending_plan_tier", "plan_effective_at", "status",
    "members", "created_at", "updated_at", "in_sync", "links": {"stripe": …, "lago": …}}]}; a link as in `status`.
    """
    now = utc_now()
    chosen: dict[LinkFilter, bool] = {"parked": parked, "behind": behind, "unpaid": unpaid, "credit": credit}
    links = [state for state, is_chosen in chosen.items() if is_chosen]
    with resources.open_database() as database, database.read() as session:
        page = overview.list_organizations(session, now, plan=plan, search=search, limit=limit, links=links)
    if as_json:
        output.show_json(
            {
                "total": page.total,
                "organizations": [descriptions.organization_json(each) for each in page.organizations],
            }
        )
        return
    if not page.total:
        output.show(
            "No organization matches."
            if plan or search or links
            else "No organizations yet. Import some with `billing-sync import`."
        )
        return
    columns = [*_ORGANIZATION_COLUMNS, _CREDIT_COLUMN] if credit else _ORGANIZATION_COLUMNS
    output.show(output.table(page.organizations, columns), output.count_line(len(page.organizations), page.total))


def upgrade_database() -> None:
    """Upgrade the database schema to this version's."""
    settings = settings_of.read()
    resources.make_database_folder(settings)
    with closing(connect(settings, pool_size=1)) as database:
        check_direct_url(database, is_needed=True)
    with closing(connect_directly(settings)) as database:
        database.upgrade()
    output.show("The database schema is up to date.")


def _credit_cell(row: OrganizationReport) -> str:
    left = [descriptions.credit_amount(link) for link in row.links.values() if link.credit_is_left]
    return "\n".join(each for each in left if each is not None)


def _name_cell(row: OrganizationReport) -> str:
    return row.name if row.status == "active" else f"{row.name} ({row.status})"


_ORGANIZATION_COLUMNS: list[Column[OrganizationReport]] = [
    Column("organization", _name_cell, kind="fold", max_width=32),
    Column("id", lambda row: row.id, kind="id"),
    Column("plan", lambda row: descriptions.plan_text(row.plan_tier, row.pending_plan_tier, "\n")),
    Column("Stripe", lambda row: descriptions.customer_id(row, "stripe"), kind="id"),
    Column("Lago", lambda row: descriptions.customer_id(row, "lago"), kind="id"),
    Column("in sync", lambda row: descriptions.sync_summary(row.links.values())),
]
_CREDIT_COLUMN: Column[OrganizationReport] = Column("credit", _credit_cell, justify="right")
