"""Commands that compare the plan catalog with the providers' prices. Missing ones can be created; none is changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import typer

from core.catalog import publishing
from core.catalog.plans import Catalog
from core.catalog.publishing import PriceStatus
from core.common.clock import utc_now
from core.organizations import queries
from core.ports.provider import BillingProvider
from core.ports.spec import PROVIDER_NAMES, Provider
from core.reconcile.account_guard import AccountGuard
from worker.cli import exit_codes, output, resources
from worker.cli.exit_codes import UsageError
from worker.cli.output import Column
from worker.wiring import catalog as catalog_wiring
from worker.wiring.runtime import open_providers

_PUSH_WHILE_OBSERVED: Final = "MANAGEMENT=manage billing-sync plans push"  # for this command only


def check(*, as_json: output.JsonOption = False) -> None:
    """Compare plans.toml with the prices at Lago and Stripe; exit code 1 if a plan is missing or differs.

    It also warns where Stripe mails the invoices, and says how many organizations have no billing email.

    JSON: {"in_order", "warnings": [sentence], "plans": [{"tier", "provider", "code", "missing", "added", "unknown",
    "sold_no_longer", "problem", "remarks": [sentence]}]}. A remark is no problem, such as an amount that includes tax.
    """
    with _open_catalog_and_providers() as (catalog, providers):
        statuses = publishing.check(catalog, providers)
    in_order = all(each.problem is None for each in statuses)
    warnings = [
        *catalog.conflicts(),
        *_billing_email_warnings(catalog),
        *_ending_warnings(catalog),
        *catalog.recommendations(),
    ]
    if as_json:
        output.show_json({"in_order": in_order, "warnings": warnings, "plans": statuses})
    else:
        output.show(output.table(statuses, _plan_columns()), *_problems(statuses), *_remarks(statuses), *warnings)
        output.show(*_ways_to_create(statuses))
    raise typer.Exit(0 if in_order else exit_codes.EXIT_FAILED)


def push(*, as_json: output.JsonOption = False) -> None:
    """Create missing plans at Lago and Stripe; exit code 1 if a plan differs or cannot be created.

    A plan that cannot be created does not keep the others from it.

    JSON: {"in_order", "plans": as in `plans check`}; "added" plans were missing before.
    """
    if resources.settings_with_providers().management == "observe":
        message = (
            f"MANAGEMENT is observe, so nothing was sent: `{_PUSH_WHILE_OBSERVED}` creates the missing plans, and "
            "changes no organization"
        )
        raise UsageError(message)
    with _open_catalog_and_providers() as (catalog, providers):
        _verify_accounts(providers)
        statuses = publishing.publish(catalog, providers)
    in_order = all(each.problem is None for each in statuses)
    if as_json:
        output.show_json({"in_order": in_order, "plans": statuses})
    else:
        output.show(output.table(statuses, _plan_columns()), *_problems(statuses))
        if any(each.problem is not None and not (each.missing or each.unknown) for each in statuses):
            output.show("Existing plans are never changed. Correct plans.toml, or sell the plan under a new code.")
    raise typer.Exit(0 if in_order else exit_codes.EXIT_FAILED)


@contextmanager
def _open_catalog_and_providers() -> Iterator[tuple[Catalog, list[BillingProvider]]]:
    settings = resources.settings_with_providers()
    catalog = catalog_wiring.load(settings)
    providers = list(open_providers(settings, catalog).values())
    try:
        yield catalog, providers
    finally:
        for provider in providers:
            provider.close()


def _verify_accounts(providers: list[BillingProvider]) -> None:
    """Refuse to create prices in an account that does not belong to this database."""
    with resources.open_database(may_create=True) as database:
        by_name = {provider.provider: provider for provider in providers}
        errors = AccountGuard(database=database, providers=by_name, clock=utc_now).confirm()
    if errors:
        raise errors[0]


def _billing_email_warnings(catalog: Catalog) -> list[str]:
    """Stripe refuses a paid subscription whose invoices it mails if the customer has no email address."""
    settings = resources.settings_with_providers()
    plans = [catalog.plan(tier) for tier in catalog.tiers()]
    tiers = [plan.tier for plan in plans if plan.charged_by == "stripe" and plan.amount > 0]
    if settings.stripe_collection_method != "send_invoice" or not tiers:
        return []
    count = 0
    if resources.has_database(settings):
        with resources.open_database(settings) as database, database.read() as session:
            count = queries.count_without_billing_email(session, tiers)
    sentence = (
        f"Stripe mails the invoices of {', '.join(tiers)}, so an organization on these plans needs a billing email, or "
        f"its customer an email address in Stripe. Organizations on them without a billing email: {count}"
    )
    return [sentence]


def _ending_warnings(catalog: Catalog) -> list[str]:
    if catalog.ending.stripe_prorate or not any(plan.charged_by == "stripe" for plan in catalog.plans.values()):
        return []
    return ["stripe_prorate is false: an organization that leaves in mid-period owes Stripe's invoice of it in full"]


def _remarks(statuses: list[PriceStatus]) -> list[str]:
    return [f"{each.code} at {PROVIDER_NAMES[each.provider]}: {remark}" for each in statuses for remark in each.remarks]


def _problems(statuses: list[PriceStatus]) -> list[str]:
    """Below the table, which would be too narrow for them: a sentence for each, once for plans that share it."""
    codes: dict[tuple[Provider, str], list[str]] = {}
    for each in statuses:
        if each.problem is not None:
            codes.setdefault((each.provider, each.problem), []).append(each.code)
    return [
        f"{its_codes[0] if len(its_codes) == 1 else f'{len(its_codes)} plans'} at {PROVIDER_NAMES[provider]}: {problem}"
        for (provider, problem), its_codes in codes.items()
    ]


def _ways_to_create(statuses: list[PriceStatus]) -> Iterator[str]:
    if not any(each.missing for each in statuses):
        return
    is_observed = resources.settings_with_providers().management == "observe"
    yield f"`{_PUSH_WHILE_OBSERVED if is_observed else 'billing-sync plans push'}` creates the missing ones."
    if any(each.missing and each.provider == "stripe" for each in statuses):
        yield (
            "If Stripe has a price of the same amount without a lookup key, give it the code above as its lookup key "
            "in Stripe's dashboard instead: push would add a second price. The comments of a plans.toml that `plans "
            "discover` proposed name such a price."
        )


def _plan_columns() -> list[Column[PriceStatus]]:
    def price_status(row: PriceStatus) -> str:
        if row.problem is not None:
            return "not known" if row.unknown else "missing" if row.missing else "differs"
        return "sold no longer" if row.sold_no_longer else "added now" if row.added else "as in the catalog"

    return [
        Column("plan", lambda row: row.tier, kind="fold"),
        Column("provider", lambda row: PROVIDER_NAMES[row.provider]),
        Column("code", lambda row: row.code, kind="fold"),
        Column("status", price_status),
    ]
