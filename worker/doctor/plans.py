"""The plan catalog: it can be read, and both providers sell each plan as it says; and who pays where Lago charges."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError

from core.catalog import publishing
from core.catalog.plans import Catalog, CatalogError
from core.catalog.publishing import PriceStatus
from core.db.database import DatabaseError
from core.db.models.billing_links import BillingLink
from core.organizations import usage_plans
from core.ports.errors import ProviderError
from core.ports.spec import PROVIDER_NAMES
from worker.config.settings import SettingsError
from worker.doctor.findings import DoctorFinding, error, not_checked, not_set, ok, warning
from worker.doctor.inputs import DoctorInputs
from worker.wiring import catalog as catalog_wiring


def check(inputs: DoctorInputs) -> list[DoctorFinding]:
    try:
        plans = catalog_wiring.load(inputs.settings)
    except (CatalogError, SettingsError) as invalid:
        advice = "correct plans.toml or PLANS_FILE, then `billing-sync plans check`"
        return [error("catalog_invalid", str(invalid), "no process starts", advice)]
    conflicts = [
        warning("catalog_order", conflict, "an upgrade is applied late, or a downgrade early", "correct plans.toml")
        for conflict in plans.conflicts()
    ]
    recommended = [not_set("usage_plans_not_set", sentence) for sentence in plans.recommendations()]
    return [*conflicts, *_price_findings(inputs, plans), *recommended, *_on_full_plans(inputs, plans)]


def _on_full_plans(inputs: DoctorInputs, plans: Catalog) -> Iterator[DoctorFinding]:
    tiers = usage_plans.tiers_with_usage_plan(plans)
    if not tiers:
        return
    try:
        with inputs.open_database() as database, database.read() as session:
            found = usage_plans.count(session, plans, tiers)
    except (DatabaseError, DBAPIError):
        return  # another check says it
    number = found.moved.total() + found.left.total()
    if number:
        message = f"Stripe charges {number} organization{'s' if number > 1 else ''} that are on a full plan in Lago"
        consequence = "Lago makes invoices for them that nobody pays"
        yield warning("full_plans_in_lago", message, consequence, "`billing-sync plans use-usage-plans`")


def _price_findings(inputs: DoctorInputs, plans: Catalog) -> list[DoctorFinding]:
    count = len(plans.plans)
    if inputs.settings.uses_sandbox:
        return [not_set("plans_not_compared", f"{count} plans, no provider to compare them with")]
    try:
        with inputs.open_providers() as providers:
            statuses = publishing.check(plans, providers)
    except ProviderError as failed:
        return [not_checked("plans_unread", f"they cannot be compared: {failed}", "`billing-sync plans check`")]
    except (SettingsError, ValueError):
        return [not_checked("plans_unread", "they cannot be compared: the settings of a provider are not valid")]
    found = list(_differences(statuses))
    return found or [ok("plans", f"{count} plans are on sale as in the catalog")]


def _differences(statuses: list[PriceStatus]) -> Iterator[DoctorFinding]:
    missing = [f"{each.code} at {PROVIDER_NAMES[each.provider]}" for each in statuses if each.missing]
    if missing:
        consequence = "an organization on such a plan is parked"
        yield error("plan_missing", f"not on sale: {', '.join(missing)}", consequence, "`billing-sync plans push`")
    for each in statuses:
        if each.problem is not None and not each.missing:
            yield error(
                "plan_differs",
                f"{each.code} at {PROVIDER_NAMES[each.provider]}: {each.problem}",
                "customers are charged what the provider has, not what the catalog says",
                "correct plans.toml, or sell the plan under a new code; then `billing-sync plans check`",
            )


def check_payer(inputs: DoctorInputs) -> list[DoctorFinding]:
    """Through which Stripe connection Lago charges. Its API lists no connections, so our own rows are the evidence."""
    settings = inputs.settings
    if settings.uses_sandbox:
        return [not_set("payer_not_set", "no provider")]
    if settings.lago_manual_payments:
        return [ok("payer_manual", "LAGO_MANUAL_PAYMENTS is true: Lago charges nobody, its invoices are paid outside")]
    if settings.lago_connection is None:
        return _without_connection(inputs)
    try:
        with inputs.open_database() as database, database.read() as session:
            linked = session.scalar(
                select(func.count())
                .select_from(BillingLink)
                .where(
                    BillingLink.provider == "lago",
                    BillingLink.payer_id.is_not(None),
                    BillingLink.synced_at.is_not(None),
                )
            )
    except (DatabaseError, DBAPIError):
        linked = 0
    connection = f"LAGO_STRIPE_PROVIDER_CODE {settings.lago_connection}"
    if linked:
        return [ok("payer", f"{connection}: Lago linked {linked} payer{'s' if linked > 1 else ''} through it")]
    message = (
        f"{connection}: Lago's API lists no connections; the first customer that is linked shows whether it is right"
    )
    return [not_checked("payer_unproved", message)]


def _without_connection(inputs: DoctorInputs) -> list[DoctorFinding]:
    try:
        plans = catalog_wiring.load(inputs.settings)
    except (CatalogError, SettingsError):
        return [not_checked("payer_unknown", "the plan catalog cannot be read")]
    tiers = [tier for tier in plans.tiers() if plans.plan(tier).charged_by == "lago"]
    if not tiers:
        return [ok("payer_not_needed", "Lago charges for no plan")]
    advice = "set LAGO_STRIPE_PROVIDER_CODE to the code of Lago's Stripe connection, or LAGO_MANUAL_PAYMENTS=true"
    message = f"LAGO_STRIPE_PROVIDER_CODE is not set, and Lago charges for {', '.join(tiers)}"
    if inputs.settings.is_sandbox_key:
        return [warning("payer_missing", message, "Lago charges nobody; only the sandbox may do so", advice)]
    return [error("payer_missing", message, "Lago would charge nobody, so no process starts", advice)]
