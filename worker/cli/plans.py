"""The plan catalog held against what the billers sell: what is missing may be added, what exists is never changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from core.catalog import plans as plan_catalog
from core.catalog import publishing
from core.catalog.plans import Catalog
from core.catalog.publishing import Offering
from core.common.clock import utc_now
from core.ports.provider import Biller
from core.reconcile.account_guard import Accounts
from worker.cli import descriptions, exit_codes, output, resources
from worker.cli.output import Column
from worker.config import settings as settings_of
from worker.wiring.runtime import open_billers


def check(*, as_json: output.AsJson = False) -> None:
    """Compare plans.toml with what Lago and Stripe sell; exit code 1 if a plan is missing or differs there.

    JSON: {"in_order", "warnings": [sentence], "plans": [{"tier", "provider", "code", "missing", "problem"}]}
    """
    with _open() as (plans, billers):
        found = publishing.check(plans, billers)
    in_order = all(each.problem is None for each in found)
    if as_json:
        output.show_json({"in_order": in_order, "warnings": plans.disagreements(), "plans": found})
    else:
        output.show(output.table(found, _columns(added=False)), *plans.disagreements())
        if any(each.missing for each in found):
            output.show("`billing-sync plans push` puts the missing ones on sale.")
    raise typer.Exit(0 if in_order else exit_codes.FAILED)


def push(*, as_json: output.AsJson = False) -> None:
    """Put on sale what is missing at Lago and Stripe; exit code 1 if a plan that is there differs.

    JSON: {"in_order", "plans": [{"tier", "provider", "code", "missing", "problem"}]}, as it stood before.
    """
    with _open() as (plans, billers):
        _refuse_other_accounts(billers)
        found = publishing.push(plans, billers)
    in_order = all(each.missing or each.problem is None for each in found)
    if as_json:
        output.show_json({"in_order": in_order, "plans": found})
    else:
        output.show(output.table(found, _columns(added=True)))
        if not in_order:
            output.show("A plan that exists is never changed: correct plans.toml, or give the plan a new code.")
    raise typer.Exit(0 if in_order else exit_codes.FAILED)


@contextmanager
def _open() -> Iterator[tuple[Catalog, list[Biller]]]:
    settings = settings_of.read()
    plans = plan_catalog.load(settings.plans_file, settings.charged_by)
    billers = list(open_billers(settings, plans).values())
    try:
        yield plans, billers
    finally:
        for biller in billers:
            biller.close()


def _refuse_other_accounts(billers: list[Biller]) -> None:
    """Nothing is put on sale in an account that is not this database's."""
    with resources.store() as database:
        by_name = {biller.provider: biller for biller in billers}
        unasked = Accounts(database=database, billers=by_name, clock=utc_now).confirm()
    if unasked:
        raise unasked[0]


def _columns(*, added: bool) -> list[Column[Offering]]:
    def verdict(row: Offering) -> str:
        if added and row.missing:
            return "added now"
        return row.problem or "as in the catalog"

    return [
        Column("plan", lambda row: row.tier),
        Column("at", lambda row: descriptions.NAMES[row.provider]),
        Column("code", lambda row: row.code),
        Column("there", verdict, kind="fold"),
    ]
