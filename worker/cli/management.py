"""Commands of observe mode: an organization's own mode, and the report of what would be written."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Final

import typer

from core.common.clock import utc_now
from core.db.models.organizations import Management
from core.events.event_types import ChangeContext
from core.organizations import management
from core.ports.minor_units import amount_text
from core.ports.planned import StepKind
from core.ports.spec import PROVIDER_NAMES, Provider
from core.reconcile.observation import Observation
from core.reporting import observed, planned_changes
from core.reporting.observed import ObservedLink, ObservedOrganization
from core.reporting.planned_changes import MoneyTotals
from worker.cli import cause, confirmation, descriptions, output, resources, stored_change
from worker.cli.exit_codes import UsageError
from worker.config import settings as settings_of
from worker.config.settings import Settings

OrgsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="ORG", help="Ids, beginnings of ids, or exact names.")
]

_CHANGING: Final = "with a change in what is paid"
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


def manage(*, orgs: OrgsArgument = None, yes: confirmation.YesOption = False) -> None:
    """Manage organizations: make the providers match, also where MANAGEMENT is observe.

    Shows what would be written, and asks if somebody would begin to pay or pay another amount. What an import or
    `set-customer-id` brought stays observed until it is adopted.
    """
    _confirm_steps(settings_of.read(), orgs, yes=yes)
    _set_mode("manage", orgs)


def inherit(*, orgs: OrgsArgument = None, yes: confirmation.YesOption = False) -> None:
    """Give organizations the mode of the installation again (MANAGEMENT).

    `adopt discover` gives the mode observe to whom two customers could charge. Run this once that is decided. Where
    MANAGEMENT is manage, it shows and asks what `management manage` does.
    """
    settings = settings_of.read()
    if settings.management == "manage":
        _confirm_steps(settings, orgs, yes=yes)
    _set_mode(None, orgs)


def report(
    *,
    orgs: OrgsArgument = None,
    only_money: Annotated[
        bool, typer.Option("--only-money", help="List only those for which something changes in what is paid.")
    ] = False,
    as_json: output.JsonOption = False,
) -> None:
    """Show what would be written for each observed organization, and what it would change in what is paid.

    It begins with numbers: of all that are observed, also where fewer are listed.

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
    is_listed = _changes_money if only_money else None
    with resources.open_database(settings) as database:
        with database.read() as session:
            ids = [descriptions.find_organization(session, each).id for each in orgs or ()]

        def found() -> Iterator[ObservedOrganization]:
            return observed.observed_organizations(database, settings.management, now, ids)

        totals = ReportTotals()
        if as_json:
            head, listed = {"installation": settings.management}, filter(is_listed, totals.adding(found()))
            output.show_json_rows(head, "organizations", listed, lambda: {"money": totals.money.changes()})
            return
        deque(totals.adding(found()), maxlen=0)  # the numbers come first, and no organization stays in memory
        output.show(f"MANAGEMENT={settings.management}.", *totals.lines())
        for each in filter(is_listed, found()):
            output.show("", f"{each.name}  {each.org_id}", *_lines(each, now))
    for line in totals.money_lines():
        output.show("", line)


@dataclass(slots=True)
class ReportTotals:
    """Numbers of all organizations that are observed."""

    money: MoneyTotals = field(default_factory=MoneyTotals)
    organizations: int = 0
    numbers: Counter[str] = field(default_factory=Counter)
    steps: Counter[StepKind] = field(default_factory=Counter)
    are_read: bool = False

    def adding(self, organizations: Iterable[ObservedOrganization]) -> Iterator[ObservedOrganization]:
        """The same, each counted, so that none has to stay in memory."""
        for organization in organizations:
            self._add(organization)
            yield organization

    def _add(self, organization: ObservedOrganization) -> None:
        read = list(_observations(organization))
        its_links = [each for each in organization.observations if each not in organization.managed]
        is_to_be_adopted = organization.is_to_be_adopted
        self.organizations += 1
        self.numbers["not read yet"] += any(organization.observations[each] is None for each in its_links)
        self.numbers["not adopted yet"] += is_to_be_adopted
        self.numbers["with a problem"] += not is_to_be_adopted and any(each.problem is not None for each in read)
        self.numbers[_CHANGING] += _changes_money(organization)
        self.steps.update(step.kind for each in read for step in each.steps)
        self.are_read = self.are_read or bool(read)
        for each in read:
            self.money.add(each)

    def lines(self) -> Iterator[str]:
        """Without what no organization has."""
        yield f"Organizations that are observed: {self.organizations}."
        yield from (f"{name}: {number}" for name, number in self.numbers.items() if number)
        if self.steps:
            kinds = (f"{number} {kind.replace('_', ' ')}" for kind, number in self.steps.most_common())
            yield f"steps: {', '.join(kinds)}"

    def money_lines(self) -> Iterator[str]:
        if self.are_read and not self.numbers[_CHANGING]:
            yield "All steps together change nothing in what is paid."
            return
        for change in self.money.changes():
            before, after = (amount_text(amount, change.currency) for amount in (change.before, change.after))
            when = "at the end of the periods" if change.at_period_end else "at once"
            yield f"All steps together, {change.interval}, {when}: {before} → {after}"


def _observations(organization: ObservedOrganization) -> Iterator[Observation]:
    return (each for each in organization.observations.values() if each is not None)


def _changes_money(organization: ObservedOrganization) -> bool:
    return any(map(planned_changes.changes_money, _observations(organization)))


def _confirm_steps(settings: Settings, orgs: list[str] | None, *, yes: bool) -> None:
    """Show what would be written, and ask if somebody would begin to pay or pay another amount."""
    with resources.open_database(settings) as database:
        with database.read() as session:
            ids = [descriptions.find_organization(session, each).id for each in orgs or ()]
        found = list(observed.observed_organizations(database, settings.management, utc_now(), ids)) if ids else []
    lines = [line for each in found for line in _managed_lines(each)]
    if any(map(_may_change_payment, found)):
        confirmation.confirm(lines, yes=yes)
    elif lines:
        output.show(*lines)


def _set_mode(mode: Management | None, orgs: list[str] | None) -> None:
    """``mode`` None: the installation's."""
    if not orgs:
        message = "name the organizations" + (
            f"; for all that have no mode of their own, set MANAGEMENT={mode} for every process and restart them"
            if mode is not None
            else ""
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
            name = mode or f"as MANAGEMENT, {settings.management}"
            output.show(f"{org_id}: {name}." if is_changed else f"{org_id}: {name} already. Nothing was changed.")
    output.show(*stored_change.lines(settings, *ids))


def _managed_lines(organization: ObservedOrganization) -> Iterator[str]:
    yield f"{organization.name}  {organization.org_id}"
    if organization.theirs:
        adopt = "" if organization.status == "deleted" else f": `billing-sync adopt {organization.org_id}`"
        yield f"  it is not adopted, so it stays observed until it is{adopt}"
        return
    for provider, observation in organization.observations.items():
        name = PROVIDER_NAMES[provider]
        if not _is_read(organization, provider):
            yield f"  {name}: not read since its last change, so what would be written is not known"
        if observation is not None:
            yield from (f"  {name}: {sentence}" for sentence in planned_changes.sentences(provider, observation))


def _is_read(organization: ObservedOrganization, provider: Provider) -> bool:
    """Whether its stored steps are those that would be taken now."""
    return organization.observations[provider] is not None and organization.links[provider].status == "observed"


def _may_change_payment(organization: ObservedOrganization) -> bool:
    """Also where it is not known, because it was not read yet. Nothing is written to one that is not adopted."""
    return not organization.theirs and any(
        observation is None or not _is_read(organization, provider) or planned_changes.changes_payment(observation)
        for provider, observation in organization.observations.items()
    )


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
        for sentence in planned_changes.sentences(provider, observation, is_adopted=not organization.is_to_be_adopted):
            yield f"  {name}: {sentence}"
    for provider in organization.without_answer:
        yield (
            f"  {PROVIDER_NAMES[provider]}: a request that was sent before has no answer. It is not sent again while "
            "the organization is observed"
        )
    if organization.is_to_be_adopted:
        yield f"  {planned_changes.not_adopted(organization.org_id)}"
