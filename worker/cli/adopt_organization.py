"""Commands that hand one organization over to billing-sync, or give it back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from core.adoption import release as adoption_release
from core.adoption.release import Release
from core.common.clock import utc_now
from core.db.models.billing_links import BillingLink
from core.events.event_types import ChangeContext
from core.ports.spec import PROVIDER_NAMES, PROVIDERS
from worker.cli import cause, confirmation, descriptions, output, resources, stored_change
from worker.cli.exit_codes import UsageError
from worker.config import settings as settings_of

_RELEASE_TEXTS: Final[dict[Release, str]] = {
    "released": "Given back: it is observed, and nothing is written to it.",
    "removes_marks": (
        "It is given back once our metadata is removed in Stripe. That is written only while it is managed."
    ),
    "released_before": "It was given back before. Nothing was changed.",
    "not_adopted": "",
}


def release(*, org: descriptions.OrgArgument, yes: confirmation.YesOption = False) -> None:
    """Give an adopted organization back: our metadata in Stripe is removed, and nothing else is written to it.

    Its customers, subscriptions and prices stay as they are. It is observed from then on, and can be adopted again.
    """
    settings = settings_of.read()
    with resources.open_database(settings) as database:
        with database.read() as session:
            found = descriptions.find_organization(session, org)
            links = [session.get_one(BillingLink, (found.id, provider)) for provider in PROVIDERS]
            lines = [f"{found.name}  {found.id}", *_release_lines(links)]
        confirmation.confirm(lines, yes=yes)
        with database.write() as session:
            organization = descriptions.lock_organization(session, found.id)
            change = ChangeContext(session, utc_now(), cause.of_command("adopt release"))
            released = adoption_release.release(change, organization)
    if released == "not_adopted":
        message = f"{found.id} was not adopted: billing-sync made its customers, so there is nobody to give it back to"
        raise UsageError(message)
    output.show(_RELEASE_TEXTS[released], *stored_change.lines(settings, found.id))


def _release_lines(links: Sequence[BillingLink]) -> Iterator[str]:
    for provider, link in zip(PROVIDERS, links, strict=True):
        if link.ownership == "adopted":
            yield f"  {PROVIDER_NAMES[provider]} customer {link.customer_id} stays as it is, and is given back"
