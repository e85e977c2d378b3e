"""Commands of observe mode: an organization's own mode, and the report of what would be written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Annotated, Final

import typer

from core.common.clock import utc_now
from core.db.models.organizations import Management
from core.events.event_types import ChangeContext
from core.organizations import management
from core.ports.minor_units import amount_text
from core.ports.spec import PROVIDER_NAMES
from core.reporting import observed, planned_changes
from core.reporting.observed import ObservedLink, ObservedOrganization
from core.reporting.planned_changes import MoneyTotals
from worker.cli import cause, descriptions, output, resources, stored_change
from worker.cli.exit_codes import UsageError
from worker.config import settings as settings_of

OrgsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="ORG", help="Ids, beginnings of ids, or exact names.")
]

_WITH_REASON: Final = {
    "parked": "parked",
    "on_hold": "on hold",
    "retrying": "it could not be read and is tried again",
    "provider_down": "it could not be read and is tried again",
}


def observe(*, orgs: OrgsArgument = None) -> None:
    """Only observe organizations: read and compare, and write nothing at a provider.

    What is being sent is not sent again, and `management report` shows what would be.
    """
    _set_mode("observe", orgs)


def manage(*, orgs: OrgsArgument = None) -> None:
    """Manage organizations: make the providers match, also where MANAGEMENT is observe.

    What an import or `set-customer-id` brought stays observed until it is adopted.
    """
    _set_mode("manage", orgs)


def report(*, orgs: OrgsArgument = None, as_json: output.JsonOption = False) -> None:
    """Show what would be written for each observed organization, and what it would change in what is paid.

    JSON: {"installation": mode, "organizations": [{"org_id", "name", "mode", "status", "theirs": [provider],
    "managed": [provider], "without_answer": [provider], "links": {provider: {"status", "observed_at", "error_code",
    "error_message"}}, "observations": {provider: {"version", "is_paid", "steps": [{"kind", "object_id", "fields",
    "before", "after", "price_before": {"amount", "currency", "interval"} or null, "price_after", "at_period_end",
    "effective_at", "is_repeat"}], "problem": {"kind", "code", "message"} or null} or null if it was not read yet}}],
    "money": [{"currency", "interval", "at_period_end", "before", "after"}]}. It is written organization by
    organization. Amounts are in minor units. "is_paid" false: nobody pays for it at this provider, because the other
    one charges. "managed": of a deleted organization, what is ours is ended although the other half is not ours.
    """
    settings, now = settings_of.read(), utc_now()
    totals = MoneyTotals()
    with resources.open_database(settings) as database:
        with database.read() as session:
            ids = [descriptions.find_organization(session, each).id for each in orgs or ()]
        found = _added(totals, observed.observed_organizations(database, settings.management, now, ids))
        if as_json:
            head = {"installation": settings.management}
            output.show_json_rows(head, "organizations", found, lambda: {"money": totals.changes()})
            return
        output.show(f"MANAGEMENT={settings.management}.")
        count = 0
        for count, each in enumerate(found, 1):  # noqa: B007 - it is shown at the end
            output.show("", f"{each.name}  {each.org_id}", *_lines(each, now))
    output.show("", f"Organizations that are observed: {count}.")
    for change in totals.changes():
        before, after = (amount_text(amount, change.currency) for amount in (change.before, change.after))
        when = "at the end of the periods" if change.at_period_end else "at once"
        output.show("", f"All steps together, {change.interval}, {when}: {before} → {after}")


def _set_mode(mode: Management, orgs: list[str] | None) -> None:
    if not orgs:
        message = (
            f"name the organizations; for all that have no mode of their own, set MANAGEMENT={mode} for every process "
            "and restart them"
        )
        raise UsageError(message)
    settings = settings_of.read()
    with resources.open_database(settings) as database:
        with database.read() as session:
            ids = [descriptions.find_organization(session, each).id for each in orgs]
        for org_id in ids:
            with database.write() as session:
                organization = descriptions.lock_organization(session, org_id)
                change = ChangeContext(session, utc_now(), cause.of_command("management"))
                is_changed = management.set_mode(change, organization, mode)
            output.show(f"{org_id}: {mode}." if is_changed else f"{org_id}: {mode} already. Nothing was changed.")
    output.show(*stored_change.lines(settings, *ids))


def _state_text(link: ObservedLink, now: datetime) -> str:
    """When it was read, and what keeps the link from being read again, if anything does."""
    read = "not read yet" if link.observed_at is None else f"read {output.relative_time(link.observed_at, now)}"
    match link.status:
        case "observed":
            return read
        case "parked" | "on_hold" | "retrying" | "provider_down":
            reason = f": {link.error_message}" if link.error_message else ""
            return f"{read}; {_WITH_REASON[link.status]}{reason}"
        case "in_sync" | "syncing" | "waiting" | "queued":
            return read if link.observed_at is None else f"{read}; it is read again soon"


def _added(totals: MoneyTotals, organizations: Iterable[ObservedOrganization]) -> Iterator[ObservedOrganization]:
    """The same, each counted in the totals, so that none has to stay in memory."""
    for organization in organizations:
        for observation in organization.observations.values():
            if observation is not None:
                totals.add(observation)
        yield organization


def _state_while_managed(link: ObservedLink) -> str:
    """Of a deleted organization whose other half is not ours."""
    match link.status:
        case "in_sync":
            return "what is ours was ended"
        case "parked" | "on_hold" | "retrying" | "provider_down":
            reason = f": {link.error_message}" if link.error_message else ""
            return f"what is ours is not ended yet; {link.status.replace('_', ' ')}{reason}"
        case "observed" | "syncing" | "waiting" | "queued":
            return "what is ours is ended soon"


def _lines(organization: ObservedOrganization, now: datetime) -> Iterator[str]:
    for provider, observation in organization.observations.items():
        name = PROVIDER_NAMES[provider]
        if provider in organization.managed:
            yield f"  {name}: {_state_while_managed(organization.links[provider])}"
            continue
        yield f"  {name}: {_state_text(organization.links[provider], now)}"
        if observation is None:
            continue
        for sentence in planned_changes.sentences(provider, observation):
            yield f"  {name}: {sentence}"
    for provider in organization.without_answer:
        yield (
            f"  {PROVIDER_NAMES[provider]}: a request that was sent before has no answer. It is not sent again while "
            "the organization is observed"
        )
    if organization.theirs and organization.status != "deleted":
        yield f"  adopt it first: `billing-sync adopt {organization.org_id}`"
