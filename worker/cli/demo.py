"""The command ``billing-sync demo``: its steps go to standard error, its result to standard output."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from core.reporting.overview import OrganizationReport
from worker import demo as demo_run
from worker.cli import descriptions, output
from worker.cli.exit_codes import CommandFailedError
from worker.cli.output import Column
from worker.config.settings import Settings
from worker.demo import DemoOrganization
from worker.wiring import logging


def demo(
    *,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the logs as well.")] = False,
    as_json: output.JsonOption = False,
) -> None:
    """Import, create, rename, upgrade and downgrade organizations in a sandbox, and show the result.

    JSON: {"in_sync", "problem", "seconds", "stripe_calls", "lago_calls", "organizations": [{"id", "name", "plan_tier",
    "pending_plan_tier", "in_sync", "stripe_customer_id", "lago_customer_id", "lago_subscription_id", "stripe_calls",
    "lago_calls"}]}
    """
    if verbose:
        logging.configure(Settings.model_construct(log_level="INFO"))
    started = time.monotonic()
    stderr = output.stderr_console()
    result = demo_run.run(lambda line: stderr.print(f"· {line}", markup=False, soft_wrap=True))
    seconds = round(time.monotonic() - started, 1)
    if as_json:
        output.show_json(
            {
                "in_sync": result.problem is None,
                "problem": result.problem,
                "seconds": seconds,
                "stripe_calls": result.stripe_calls,
                "lago_calls": result.lago_calls,
                "organizations": [_row_json(row) for row in result.organizations],
            }
        )
    else:
        output.show("", output.table(result.organizations, _DEMO_COLUMNS), "")
        output.show(
            f"Requests: Stripe + Lago, {result.stripe_calls} + {result.lago_calls} in all, counted by the sandbox."
        )
    if result.problem is not None:
        raise CommandFailedError(result.problem)
    if not as_json:
        output.show(
            f"All {len(result.organizations)} organizations are in sync after {seconds} s: "
            "one customer each at Stripe and Lago.",
            f"Next: `{descriptions.program_path()} up` runs everything with its own sandbox; no key needed.",
        )


def _plan_cell(organization: OrganizationReport) -> str:
    return descriptions.plan_text(organization.plan_tier, organization.pending_plan_tier, "\n")


def _row_json(row: DemoOrganization) -> dict[str, object]:
    organization = row.organization
    return {
        "id": organization.id,
        "name": organization.name,
        "plan_tier": organization.plan_tier,
        "pending_plan_tier": organization.pending_plan_tier,
        "in_sync": organization.in_sync,
        "stripe_customer_id": organization.links["stripe"].customer_id,
        "lago_customer_id": organization.links["lago"].customer_id,
        "lago_subscription_id": organization.links["lago"].subscription_id,
        "stripe_calls": row.stripe_calls,
        "lago_calls": row.lago_calls,
    }


_DEMO_COLUMNS: list[Column[DemoOrganization]] = [
    Column("organization", lambda row: row.organization.name, kind="fold", max_width=20),
    Column("plan", lambda row: _plan_cell(row.organization)),
    Column("Stripe\ncustomer", lambda row: descriptions.customer_id(row.organization, "stripe"), kind="id"),
    Column("Lago\ncustomer", lambda row: descriptions.customer_id(row.organization, "lago"), kind="id"),
    Column("Lago\nsubscription", lambda row: row.organization.links["lago"].subscription_id, kind="id"),
    Column("in sync", lambda row: descriptions.sync_summary(row.organization.links.values())),
    Column("requests", lambda row: f"{row.stripe_calls} + {row.lago_calls}", justify="right"),
]
