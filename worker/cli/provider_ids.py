"""Correction of an organization's customer ids at the providers, by an operator."""

from __future__ import annotations

from typing import Annotated

import typer

from core.common.clock import utc_now
from core.common.validation import InvalidChangeError
from core.events.event_types import Cause, ChangeContext
from core.organizations import provider_ids
from worker.cli import descriptions, output, resources
from worker.cli.exit_codes import UsageError
from worker.config import settings as settings_of

SET_CUSTOMER_ID_CAUSE = Cause(actor="operator", source="billing-sync set-customer-id")


def set_customer_id(
    *,
    org: descriptions.OrgArgument,
    stripe: Annotated[str | None, typer.Option(metavar="cus_…", help="The customer's id in Stripe.")] = None,
    lago: Annotated[str | None, typer.Option(metavar="ID", help="The customer's id in Lago (lago_id).")] = None,
) -> None:
    """Set the customer ids of an organization. Each is read at the provider before anything is written to it."""
    if stripe is None and lago is None:
        message = "give an id: --stripe cus_…, or --lago ID"
        raise UsageError(message)
    settings = settings_of.read()
    with resources.open_database(settings) as database, database.write() as session:
        organization = descriptions.lock_organization(session, org)
        try:
            change = ChangeContext(session, utc_now(), SET_CUSTOMER_ID_CAUSE)
            provider_ids.set_customer_ids(change, organization, {"stripe": stripe, "lago": lago})
        except InvalidChangeError as error:
            raise UsageError(str(error)) from None
        org_id = organization.id
    output.show(f"Stored. `billing-sync status {org_id}` shows the result at the providers.")
    if settings.is_embedded:
        output.show(descriptions.EMBEDDED_NOTICE)
