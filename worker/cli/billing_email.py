"""The billing email of an organization, set by an operator."""

from __future__ import annotations

from typing import Annotated

import typer

from core.common.clock import utc_now
from core.common.validation import InvalidChangeError
from core.events.event_types import Cause, ChangeContext
from core.organizations import commands
from worker.cli import descriptions, output, resources
from worker.cli.exit_codes import UsageError
from worker.config import settings as settings_of
from worker.wiring import catalog as catalog_wiring

SET_BILLING_EMAIL_CAUSE = Cause(actor="operator", source="billing-sync set-billing-email")


def set_billing_email(
    *, org: descriptions.OrgArgument, address: Annotated[str, typer.Argument(help="The email address.")]
) -> None:
    """Set the billing email of an organization. Both providers get it, and a link that is parked goes on."""
    settings = settings_of.read()
    catalog = catalog_wiring.load(settings)
    with resources.open_database(settings) as database, database.write() as session:
        organization = descriptions.lock_organization(session, org)
        try:
            change = ChangeContext(session, utc_now(), SET_BILLING_EMAIL_CAUSE)
            commands.change_billing_details(change, organization, catalog, billing_email=address)
        except InvalidChangeError as error:
            raise UsageError(str(error)) from None
        org_id = organization.id
    output.show(f"Stored. `billing-sync status {org_id}` shows the result at the providers.")
    if settings.is_embedded:
        output.show(descriptions.EMBEDDED_NOTICE)
