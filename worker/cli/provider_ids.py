"""Correction of an organization's customer ids at the providers, by an operator.

It runs twice, as ``set_organization`` does: first in a savepoint, so that an id is refused before anybody confirms it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated

import typer
from sqlalchemy.orm import Session

from core.common.clock import utc_now
from core.common.validation import InvalidChangeError
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.events.event_types import ChangeContext
from core.organizations import provider_ids
from core.ports.spec import PROVIDER_NAMES, Provider
from worker.cli import cause, confirmation, descriptions, output, resources, stored_change
from worker.cli.exit_codes import CommandFailedError, UsageError
from worker.config import settings as settings_of


def set_customer_id(
    *,
    org: descriptions.OrgArgument,
    stripe: Annotated[str | None, typer.Option(metavar="cus_…", help="The customer's id in Stripe.")] = None,
    lago: Annotated[str | None, typer.Option(metavar="ID", help="The customer's id in Lago (lago_id).")] = None,
    yes: confirmation.YesOption = False,
) -> None:
    """Set the customer ids of an organization, which is observed until the new customer is adopted.

    Says first which customer replaces which. Nothing is written to a customer whose id is set before
    `billing-sync adopt ORG`. One in Stripe that this database's billing-sync made needs no adoption: its metadata says
    so.
    """
    if stripe is None and lago is None:
        message = "give an id: --stripe cus_…, or --lago ID"
        raise UsageError(message)
    ids: dict[Provider, str | None] = {"stripe": stripe, "lago": lago}
    settings = settings_of.read()
    with resources.open_database(settings) as database:
        with database.write() as session:
            organization = descriptions.lock_organization(session, org)
            org_id, version = organization.id, organization.version
            title = f"{organization.name}  {org_id}"
            lines = list(_changes(session, org_id, ids))
            savepoint = session.begin_nested()
            _apply(session, organization, ids)
            savepoint.rollback()
        if not lines:
            output.show(f"{org_id} has these customers already. Nothing was changed.")
            return
        confirmation.confirm([title, *lines], yes=yes)
        with database.write() as session:
            organization = descriptions.lock_organization(session, org_id)
            if organization.version != version:
                message = f"{org_id} changed meanwhile; nothing was stored. Run the command again"
                raise CommandFailedError(message)
            _apply(session, organization, ids)
    output.show("Stored.", *stored_change.lines(settings, org_id))


def _apply(session: Session, organization: Organization, ids: Mapping[Provider, str | None]) -> None:
    change = ChangeContext(session, utc_now(), cause.of_command("set-customer-id"))
    try:
        provider_ids.set_customer_ids(change, organization, ids)
    except InvalidChangeError as error:
        raise UsageError(str(error)) from None


def _changes(session: Session, org_id: str, ids: Mapping[Provider, str | None]) -> Iterator[str]:
    for provider, customer_id in ids.items():
        former_id = session.get_one(BillingLink, (org_id, provider)).customer_id
        if customer_id is None or customer_id == former_id:
            continue
        provider_name = PROVIDER_NAMES[provider]
        yield f"  {provider_name} customer: {former_id or 'none'} → {customer_id}"
        command = f"`billing-sync adopt {org_id}`"
        yield f"  {customer_id} is read in {provider_name}; nothing is written to it before {command}"
        if former_id is not None:
            yield f"  {former_id} stays in {provider_name} as it is, and is not used any more"
