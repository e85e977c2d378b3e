"""Commands of the payment brake: what waits, letting it go, dropping it, and expecting what is meant."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Final

import typer

from core.catalog.plans import Catalog
from core.common.clock import utc_now
from core.common.validation import InvalidChangeError
from core.db.database import Database
from core.db.models.organizations import Organization
from core.events.event_types import ChangeContext
from core.flow_control import payment_brake
from core.organizations import commands as organization_commands
from core.ports.spec import PROVIDER_NAMES, PROVIDERS, Provider
from core.reconcile import payment_holds
from core.reconcile.payment_goals import DROPPED_CODE, ON_HOLD_CODES
from core.reconcile.payment_holds import ChangeOnHold
from worker.cli import brake_prices, cause, confirmation, descriptions, output, resources, stored_change
from worker.cli.exit_codes import UsageError
from worker.cli.output import Column
from worker.cli.reasons import ReasonOption
from worker.config import settings as settings_of
from worker.config.settings import Settings
from worker.wiring import catalog as catalog_wiring

DECISION_BATCH_SIZE: Final = 200
_KIND_BY_CODE: Final = {
    ON_HOLD_CODES["end"]: "end",
    ON_HOLD_CODES["plan"]: "plan",
    ON_HOLD_CODES["payer"]: "payer",
    DROPPED_CODE: "dropped",
}
_LISTED_BEFORE_CONFIRMATION: Final = 20

OnlyOption = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="ORG", help="Only this organization; may be repeated. Default: all that wait."),
]
Decide = Callable[[ChangeContext, Organization, Catalog], list[Provider]]


def list_on_hold(*, limit: output.LimitOption = 50, as_json: output.JsonOption = False) -> None:
    """List what is on hold, ends first, and the places of this hour.

    A dropped change is listed until its organization is corrected and released.

    JSON: {"limit": changes an hour or null, "used": in the last hour, "waiting": {code: links}, "expected":
    [{"id", "changes", "used", "until", "reason", "actor"}], "on_hold": [{"org_id", "name", "provider", "kind": "end",
    "plan", "payer" or "dropped", "since", "before": code or null, "plan", "next_plan", "payer_before",
    "payer_after", "price_before", "price_after"}]}. A price is {"amount", "currency", "interval"}; null: it is not
    known, or nothing is paid.
    """
    settings, now = settings_of.read(), utc_now()
    catalog = catalog_wiring.load(settings)
    with resources.open_database(settings) as database, database.read() as session:
        found = payment_holds.list_on_hold(session, limit)
        waiting = payment_holds.count_on_hold(session)
        used = payment_brake.count_places(session, now)
        expected = payment_brake.open_expectations(session, now)
        places = None if settings.payment_limit is None else settings.payment_limit.of(database)
    if as_json:
        names = ("id", "changes", "used", "until", "reason", "actor")
        output.show_json(
            {
                "limit": places,
                "used": used,
                "waiting": waiting,
                "expected": [{name: getattr(each, name) for name in names} for each in expected],
                "on_hold": [_json(each, catalog) for each in found],
            }
        )
        return
    limit_text = "no limit" if places is None else f"of {places}"
    output.show(f"Changes of what organizations pay in the last hour: {used} {limit_text}.")
    for each in expected:
        left, until = each.changes - each.used, output.utc_time(each.until)
        output.show(f"Expected until {until}: {left} more of {each.changes} ({each.reason}). Id: {each.id}")
    if not found:
        output.show("Nothing is on hold.")
        return
    output.show(output.table(found, _columns(catalog, now)), output.count_line(len(found), _total(waiting, found)))
    output.show("→ `billing-sync brake release --reason …` sends them, `billing-sync brake drop --reason …` never does")


def release(*, reason: ReasonOption, only: OnlyOption = None, yes: confirmation.YesOption = False) -> None:
    """Let changes go that are on hold: each is sent as it is now.

    It takes no place of the hour. With --only also what was dropped.
    """

    def decide(change: ChangeContext, organization: Organization, catalog: Catalog) -> list[Provider]:
        return payment_holds.release(change, organization, catalog, reason)

    settings = settings_of.read()
    released = _decide(settings, "release", decide, only, yes=yes)
    output.show(f"Released: {descriptions.plural(released, 'organization')}.", *stored_change.lines(settings))


def drop(*, reason: ReasonOption, only: OnlyOption = None, yes: confirmation.YesOption = False) -> None:
    """Leave changes on hold for good: nothing is sent, and the organizations stay as they are here."""

    def decide(change: ChangeContext, organization: Organization, _catalog: Catalog) -> list[Provider]:
        return payment_holds.drop(change, organization, reason)

    dropped = _decide(settings_of.read(), "drop", decide, only, yes=yes)
    output.show(
        f"Dropped for {descriptions.plural(dropped, 'organization')}: their links stay on hold, and their rows stay as "
        "they are. Correct them with `billing-sync set`, then run `billing-sync brake release --only ORG --reason …`. "
        "Deleted organizations still wait: who has left must not be billed."
    )


def expect(
    *,
    changes: Annotated[int, typer.Argument(min=1, help="How many.")],
    reason: ReasonOption,
    hours: Annotated[int, typer.Option(min=1, max=744, help="For how many hours.")] = 24,
) -> None:
    """Expect changes that are meant, beyond those of each hour.

    For a launch or a move of many. Each change takes one of them until the time is over, before it takes one of the
    hour.
    """
    settings = settings_of.read()
    with resources.open_database(settings) as database, database.write() as session:
        change = ChangeContext(session, utc_now(), cause.of_command("brake expect"))
        try:
            expectation = payment_holds.expect(change, changes, timedelta(hours=hours), reason)
        except InvalidChangeError as error:
            raise UsageError(str(error)) from error
        until = output.utc_time(expectation.until)
    output.show(f"Until {until}, {changes} changes of what organizations pay are sent beyond those of each hour.")


def withdraw(
    *, expectation: Annotated[str, typer.Argument(metavar="ID", help="Its id, as `brake list` shows it.")]
) -> None:
    """End an expectation: changes take the places of the hour again.

    What was sent already stays sent.
    """
    with resources.open_database() as database, database.write() as session:
        found = payment_holds.withdraw(session, expectation, utc_now())
        if found is None:
            message = f"no open expectation has the id {expectation!r}: `billing-sync brake list` shows them"
            raise UsageError(message)
        used, changes = found.used, found.changes
    output.show(f"Withdrawn: {used} of {changes} expected changes were sent, and no more are expected.")


def _decide(settings: Settings, command: str, decide: Decide, only: Sequence[str] | None, *, yes: bool) -> int:
    """Show, ask, and decide in small transactions, by ascending id, so that it can be repeated if it was interrupted.

    Who changed since it was shown is left on hold and named. Returns the number of organizations.
    """
    catalog = catalog_wiring.load(settings)
    count, changed = 0, []
    with resources.open_database(settings) as database:
        versions = _confirm(database, catalog, only, drops=command == "drop", yes=yes)
        for first in range(0, len(versions), DECISION_BATCH_SIZE):
            with database.write() as session:
                change = ChangeContext(session, utc_now(), cause.of_command(f"brake {command}"))
                for org_id in list(versions)[first : first + DECISION_BATCH_SIZE]:
                    organization = organization_commands.lock(session, org_id)
                    if organization is None or organization.version != versions[org_id]:
                        changed.append(org_id)
                    elif decide(change, organization, catalog):
                        count += 1
    if changed:
        output.show(f"Changed meanwhile, so still on hold: {', '.join(changed)}. Run the command again.")
    return count


def _confirm(
    database: Database, catalog: Catalog, only: Sequence[str] | None, *, drops: bool, yes: bool
) -> dict[str, int]:
    """The organizations that are decided about, by ascending id, with the versions that were shown.

    ``drops``: without the deleted ones, whose end cannot be dropped.
    """
    with database.read() as session:
        named = {descriptions.find_organization(session, each).id for each in only or ()}
        found = payment_holds.list_on_hold(session, _LISTED_BEFORE_CONFIRMATION + len(PROVIDERS) * len(named), named)
        versions = payment_holds.waiting_versions(session, with_deleted=not drops)
        if named:  # also those that were dropped
            org_ids = sorted({each.org_id for each in found if not (drops and each.is_deleted)})
            versions = {org_id: session.get_one(Organization, org_id).version for org_id in org_ids}
    if not versions:
        message = "nothing is on hold that this can decide about; `billing-sync brake list` shows what is"
        raise UsageError(message)
    shown = [each for each in found if each.org_id in versions][:_LISTED_BEFORE_CONFIRMATION]
    changes = "The change of 1 organization" if len(versions) == 1 else f"The changes of {len(versions)} organizations"
    will_be = "will never be sent" if drops else "will be sent"
    confirmation.confirm([*_sentences(shown, catalog), f"{changes} {will_be}."], yes=yes)
    return versions


def _sentences(found: Sequence[ChangeOnHold], catalog: Catalog) -> Iterator[str]:
    for each in found:
        provider, text = PROVIDER_NAMES[each.provider], brake_prices.change_text(each, catalog)
        yield f"{each.org_id}  {each.name}  at {provider}: {text}"
    if len(found) == _LISTED_BEFORE_CONFIRMATION:
        yield "…"


def _total(waiting: dict[str, int], found: Sequence[ChangeOnHold]) -> int:
    return sum(waiting.values()) + sum(each.code == DROPPED_CODE for each in found)


def _columns(catalog: Catalog, now: datetime) -> list[Column[ChangeOnHold]]:
    return [
        Column("since", lambda row: output.relative_time(row.since, now)),
        Column("kind", lambda row: _KIND_BY_CODE.get(row.code, row.code)),
        Column("organization", lambda row: row.org_id, kind="id"),
        Column("name", lambda row: row.name, kind="fold"),
        Column("at", lambda row: PROVIDER_NAMES[row.provider]),
        Column("change", lambda row: brake_prices.change_text(row, catalog), kind="fold"),
    ]


def _json(found: ChangeOnHold, catalog: Catalog) -> dict[str, object]:
    return {
        "org_id": found.org_id,
        "name": found.name,
        "provider": found.provider,
        "kind": _KIND_BY_CODE.get(found.code, found.code),
        "since": found.since,
        "before": found.before,
        "plan": found.plan,
        "next_plan": found.next_plan,
        "payer_before": found.payer_before,
        "payer_after": found.payer_after,
        "price_before": brake_prices.price_before(found, catalog),
        "price_after": brake_prices.price_after(found, catalog),
    }
