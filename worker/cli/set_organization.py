"""Changes of an organization by an operator: name, plan, status, billing email and currency.

The functions are those of the API. They run twice: first in a savepoint that is rolled back, so that a value is refused
before anybody confirms it, and then for good, if the organization is still as it was shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Final

import typer
from sqlalchemy.orm import Session

from core.catalog.plans import Catalog
from core.common.clock import utc_now
from core.common.validation import InvalidChangeError
from core.db.models.organizations import ORGANIZATION_STATUSES, Organization
from core.events.event_types import ChangeContext
from core.organizations import commands, plan_changes
from core.ports.minor_units import amount_text
from core.ports.spec import PROVIDER_NAMES
from core.reporting import plan_preview
from worker.cli import cause, confirmation, descriptions, leaving, output, resources, stored_change
from worker.cli.exit_codes import CommandFailedError, UsageError
from worker.config import settings as settings_of
from worker.wiring import catalog as catalog_wiring

_OPTION_BY_FIELD: Final = {
    "name": "--name",
    "plan_tier": "--plan",
    "status": "--status",
    "billing_email": "--billing-email",
    "currency": "--currency",
}
_STATUS_EFFECTS: Final = {
    "active": "it may be used",
    "suspended": "its use is blocked; billing goes on",
    "deleted": "its subscriptions at both providers end, and both customers stay",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedValues:
    """``None`` leaves a field as it is."""

    name: str | None
    plan_tier: str | None
    status: str | None
    billing_email: str | None
    currency: str | None

    @property
    def only_status(self) -> bool:
        return (self.name, self.plan_tier, self.billing_email, self.currency) == (None, None, None, None)


def set_organization(  # noqa: PLR0913 - one option for each field
    *,
    org: descriptions.OrgArgument,
    plan: Annotated[str | None, typer.Option(metavar="PLAN", help="A plan of plans.toml.")] = None,
    name: Annotated[str | None, typer.Option(help="The new name.")] = None,
    status: Annotated[
        str | None, typer.Option(metavar="STATUS", help=f"One of {', '.join(ORGANIZATION_STATUSES)}.")
    ] = None,
    billing_email: Annotated[str | None, typer.Option(metavar="ADDRESS", help="The new billing email.")] = None,
    currency: Annotated[str | None, typer.Option(metavar="CODE", help="The new currency, such as USD.")] = None,
    yes: confirmation.YesOption = False,
) -> None:
    """Change an organization as the API does: plan, name, status, billing email or currency. Says first what follows.

    A higher plan applies immediately, a lower one at the end of the paid period; the current plan cancels a scheduled
    one. Both providers get the change, and a link that is parked is tried again.
    """
    requested = RequestedValues(
        name=name, plan_tier=plan, status=status, billing_email=billing_email, currency=currency
    )
    if requested.only_status and requested.status is None:
        message = "choose what to set: --plan, --name, --status, --billing-email or --currency"
        raise UsageError(message)
    settings = settings_of.read()
    catalog = catalog_wiring.load(settings)
    with resources.open_database(settings) as database:
        with database.write() as session:
            organization = descriptions.lock_organization(session, org)
            org_id, version = organization.id, organization.version
            lines = _try(session, organization, requested, catalog)
        if not lines:
            output.show(f"{org_id} has these values already. Nothing was changed.")
            return
        confirmation.confirm(lines, yes=yes)
        with database.write() as session:
            organization = descriptions.lock_organization(session, org_id)
            if organization.version != version:
                message = f"{org_id} changed meanwhile; nothing was stored. Run the command again"
                raise CommandFailedError(message)
            _apply(session, organization, requested, catalog)
    output.show("Stored.", *stored_change.lines(settings, org_id))


def _try(session: Session, organization: Organization, requested: RequestedValues, catalog: Catalog) -> list[str]:
    """What the change does, a sentence each; empty if it does nothing. Raises ``UsageError`` for a refused value."""
    lines = list(_changes(session, organization, requested, catalog))
    title = f"{organization.name}  {organization.id}"
    savepoint = session.begin_nested()
    _apply(session, organization, requested, catalog)
    session.flush()
    ends_without_credit = leaving.count_ends_without_credit(session, [organization.id], catalog)
    savepoint.rollback()
    if not lines:
        return []
    if ends_without_credit:
        lines.append(leaving.no_credit_notice(ends_without_credit))
    return [title, *(f"  {line}" for line in lines)]


def _apply(session: Session, organization: Organization, requested: RequestedValues, catalog: Catalog) -> None:
    change = ChangeContext(session, utc_now(), cause.of_command("set"))
    try:
        if "deleted" in {organization.status, requested.status} and not requested.only_status:
            message = f"--status: {organization.id} is deleted, or will be; set --status alone, without other values"
            raise UsageError(message)
        if requested.status is not None:
            commands.change_status(change, organization, requested.status)
        if requested.name is not None:
            commands.rename(change, organization, requested.name)
        commands.change_billing_details(
            change, organization, catalog, billing_email=requested.billing_email, currency=requested.currency
        )
        if requested.plan_tier is not None:
            plan_changes.change_plan(change, organization, requested.plan_tier, catalog)
    except InvalidChangeError as error:
        message = f"{_OPTION_BY_FIELD.get(error.field, error.field)}: {error}"
        raise UsageError(message) from None


def _changes(
    session: Session, organization: Organization, requested: RequestedValues, catalog: Catalog
) -> Iterator[str]:
    if requested.status not in {None, organization.status}:
        effect = _STATUS_EFFECTS.get(requested.status or "", "")
        yield f"status: {organization.status} → {requested.status}; {effect}"
        if requested.status == "deleted" and organization.pending_plan_tier is not None:
            yield f"the scheduled change to {organization.pending_plan_tier} is canceled"
    if requested.name is not None and requested.name.strip() != organization.name:
        yield f"name: {organization.name} → {requested.name.strip()}"
    if requested.billing_email not in {None, organization.billing_email}:
        yield f"billing email: {organization.billing_email or 'none'} → {requested.billing_email}"
    if requested.currency not in {None, organization.currency}:
        yield f"currency: {organization.currency or 'none'} → {requested.currency}"
    if requested.plan_tier is not None:
        yield from _plan_lines(session, organization, requested.plan_tier, catalog)


def _plan_lines(session: Session, organization: Organization, plan_tier: str, catalog: Catalog) -> Iterator[str]:
    try:
        preview = plan_preview.preview_change(session, organization, plan_tier, catalog)
    except InvalidChangeError as error:
        message = f"--plan: {error}"
        raise UsageError(message) from None
    summary = plan_preview.summary(preview, organization, plan_tier)
    if not preview.is_possible:
        message = f"--plan: {summary}"
        raise UsageError(message)
    if preview.step.kind == "none":
        return
    yield f"plan: {summary}"
    if preview.step.kind == "canceled":
        return
    yield (
        f"list price: {_price(organization.plan_tier, catalog)} → {_price(plan_tier, catalog)}; "
        f"{PROVIDER_NAMES[preview.charged_by]} charges"
    )
    if preview.query is None:
        yield plan_preview.CHARGING_PROVIDER_CHANGES


def _price(tier: str, catalog: Catalog) -> str:
    plan = catalog.plans.get(tier)
    return "unknown" if plan is None else f"{amount_text(plan.amount, plan.currency)} {plan.interval}"
