"""The command that moves organizations to the Lago plans of amount 0, where Stripe charges."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final

import typer

from core.catalog.plans import Catalog
from core.common.clock import utc_now
from core.db.database import Database
from core.events.event_types import ChangeContext
from core.organizations import usage_plans
from core.organizations.usage_plans import OnFullPlan
from worker.cli import cause, confirmation, descriptions, output, resources, stored_change
from worker.cli.exit_codes import UsageError
from worker.config import settings as settings_of
from worker.wiring import catalog as catalog_wiring

MOVE_BATCH_SIZE: Final = 200
USAGE_PLANS_PAGE: Final = "docs/how-to/usage-plans.md"


def use_usage_plans(
    *,
    tier: Annotated[str | None, typer.Argument(help="Only organizations on this tier.")] = None,
    yes: confirmation.YesOption = False,
) -> None:
    """Move organizations for which Stripe charges to the Lago plan of amount 0 of their tier.

    Lago lowers a price at the end of its period. No amount changes that somebody pays. It says how many it moves, and
    asks. If it is interrupted, run it again.
    """
    settings = settings_of.read()
    catalog = catalog_wiring.load(settings)
    tiers = _tiers(catalog, tier)
    with resources.open_database(settings) as database:
        with database.read() as session:
            found = usage_plans.count(session, catalog, tiers)
        if not found.moved:
            output.show("Nobody is left to move.", *_left(found))
            return
        confirmation.confirm([*_numbers(found, catalog), *_left(found)], yes=yes)
        moved = _move(database, catalog, tiers)
    output.show(
        f"Moved: {descriptions.plural(moved, 'organization')}. Lago changes each at the end of its period there.",
        *stored_change.lines(settings),
    )


def _tiers(catalog: Catalog, tier: str | None) -> list[str]:
    tiers = usage_plans.tiers_with_usage_plan(catalog)
    if not tiers:
        message = (
            f"no tier that Stripe charges for has a lago_usage_plan_code in plans.toml; {USAGE_PLANS_PAGE} says how"
        )
        raise UsageError(message)
    if tier is None:
        return tiers
    if tier not in tiers:
        message = f"{tier} is none of the tiers that Stripe charges for and that have a lago_usage_plan_code: "
        raise UsageError(message + ", ".join(tiers))
    return [tier]


def _move(database: Database, catalog: Catalog, tiers: list[str]) -> int:
    """In small transactions, by ascending id. Who was moved is not found again."""
    count, after = 0, ""
    while True:
        with database.read() as session:
            org_ids = usage_plans.next_org_ids(session, catalog, tiers, after, MOVE_BATCH_SIZE)
        if not org_ids:
            return count
        with database.write() as session:
            change = ChangeContext(session, utc_now(), cause.of_command("plans use-usage-plans"))
            count += sum(usage_plans.move(change, org_id, catalog) for org_id in org_ids)
        after = org_ids[-1]


def _numbers(found: OnFullPlan, catalog: Catalog) -> Iterator[str]:
    for tier, number in found.moved.items():
        plan = catalog.plan(tier)
        yield (
            f"{tier}: {descriptions.plural(number, 'organization')} from {plan.lago_plan_code} to "
            f"{plan.lago_usage_plan_code} in Lago"
        )
    yield "Stripe charges for all of them, so nobody pays another amount."


def _left(found: OnFullPlan) -> Iterator[str]:
    if found.left:
        number = descriptions.plural(found.left.total(), "organization")
        yield f"Left, because Lago's link is observed, parked or on hold: {number}. Run the command again after that."
