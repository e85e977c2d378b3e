"""A person's correction of the customer ids that an organization is known under at the billers."""

from __future__ import annotations

from typing import Annotated

import typer

from core.common.clock import utc_now
from core.common.validation import InvalidChangeError
from core.events.event_types import Cause, Change
from core.organizations import commands, provider_ids
from worker.cli import descriptions, output, resources
from worker.cli.exit_codes import UsageError
from worker.config import settings as settings_of

BY_A_PERSON = Cause(actor="person", source="billing-sync ids")


def ids(
    *,
    org: descriptions.Org,
    stripe: Annotated[str | None, typer.Option(metavar="cus_…", help="The customer's id in Stripe.")] = None,
    lago: Annotated[str | None, typer.Option(metavar="ID", help="The customer's id in Lago (lago_id).")] = None,
) -> None:
    """Correct the customer ids of an organization. Each is read at its biller before anything is written there."""
    if stripe is None and lago is None:
        message = "say which id: --stripe cus_…, or --lago ID"
        raise UsageError(message)
    settings = settings_of.read()
    with resources.store(settings) as database, database.write() as session:
        found = descriptions.meant(session, org)
        organization = commands.lock(session, found.id)
        if organization is not None:
            try:
                change = Change(session, utc_now(), BY_A_PERSON)
                provider_ids.replace(change, organization, {"stripe": stripe, "lago": lago})
            except InvalidChangeError as error:
                raise UsageError(str(error)) from None
    output.show(f"Stored; `billing-sync status {found.id}` shows what the billers say.")
    if settings.is_embedded:
        output.show(descriptions.EMBEDDED)
