"""The command that moves organizations to the provider that charges their plan now: first a list, then its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import typer
from sqlalchemy.orm import Session

from core.catalog.plans import Catalog
from core.common.clock import utc_now
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.events.event_types import ChangeContext
from core.organizations import commands as organization_commands
from core.ports.minor_units import amount_text
from core.ports.spec import PROVIDER_NAMES, PROVIDERS, Provider
from core.reconcile import charging_file, charging_moves
from core.reconcile.charging_file import ChargingFileError, ListedMove
from core.reconcile.charging_moves import ChargingMove, MoveRules
from worker.cli import cause, confirmation, descriptions, exit_codes, output, resources, stored_change
from worker.cli.exit_codes import UsageError
from worker.config import settings as settings_of
from worker.config.settings import Settings
from worker.wiring import catalog as catalog_wiring

APPLIED_IN_ONE_TRANSACTION: Final = 50
_SHOWN_BEFORE_CONFIRMATION: Final = 20
_CHANGED: Final = "it changed since it was listed: write the list again"
RowResult = tuple[str, Literal["started", "moving", "moved", "left"], str | None]


def move(  # noqa: PLR0913 - its options
    *,
    to: Annotated[
        str | None, typer.Option("--to", metavar="PROVIDER", help="Who is to charge: stripe or lago.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the list to a new CSV file.")] = None,
    apply: Annotated[Path | None, typer.Option("--apply", metavar="FILE", help="Move the rows of this file.")] = None,
    expect: Annotated[
        int | None,
        typer.Option(
            "--expect", min=1, metavar="N", help="At most so many rows are left to move: none counts for the brake."
        ),
    ] = None,
    yes: confirmation.YesOption = False,
    as_json: output.JsonOption = False,
) -> None:
    """Move organizations to the provider that charges their plan now.

    First `--to stripe --out FILE` lists who is charged by the other one, and what is lost on the way. Then `--apply
    FILE` moves exactly those that are still as listed: the old provider stops first. If it is interrupted, run it
    again. Exit code 0: each row has moved or moves; 1: a row was left, see the output.

    JSON: {"moves": [{"org_id", "state": "can_move", "moving" or "left", "reason"}]} of a list, and {"results":
    [{"org_id", "result": "started", "moving", "moved" or "left", "reason"}]} of --apply.
    """
    settings = settings_of.read()
    if apply is not None and to is None and out is None:
        _apply(settings, apply, expect, yes=yes, as_json=as_json)
    elif to is not None and out is not None and apply is None and expect is None:
        _write_list(settings, _provider(to), out, as_json=as_json)
    else:
        message = "say either --to PROVIDER --out FILE, which writes the list, or --apply FILE, which moves its rows"
        raise UsageError(message)


def _provider(given: str) -> Provider:
    found = next((provider for provider in PROVIDERS if provider == given), None)
    if found is None:
        message = f"--to {given}: say stripe or lago"
        raise UsageError(message)
    return found


def _write_list(settings: Settings, to: Provider, out: Path, *, as_json: bool) -> None:
    catalog = catalog_wiring.load(settings)
    with resources.open_database(settings) as database, database.read() as session:
        moves = charging_moves.list_moves(session, _rules(settings, catalog, to))
    try:
        charging_file.write_moves(out, moves, to)
    except ChargingFileError as error:
        raise UsageError(str(error)) from None
    if as_json:
        output.show_json(
            {"moves": [{"org_id": each.org_id, "state": each.state, "reason": each.reason} for each in moves]}
        )
        return
    ready = sum(each.state == "can_move" for each in moves)
    output.show(
        f"{descriptions.plural(len(moves), 'organization')} in {out}, {ready} can move to {PROVIDER_NAMES[to]}.",
        *(f"{each.org_id}  {each.name}: {each.reason}" for each in moves if each.reason),
        f"→ `billing-sync charging move --apply {out}` moves them",
    )


def _apply(settings: Settings, file: Path, expect: int | None, *, yes: bool, as_json: bool) -> None:
    catalog = catalog_wiring.load(settings)
    try:
        rows = charging_file.read_moves(file)
    except ChargingFileError as error:
        raise UsageError(str(error)) from None
    with resources.open_database(settings) as database:
        ready = _ready(database, rows, catalog, settings)
        if expect is not None and expect < len(ready):
            message = f"--expect {expect}, but {len(ready)} rows are still to move: nothing was changed"
            raise UsageError(message)
        if ready:
            confirmation.confirm(list(_sentences(ready)), yes=yes, on_stderr=as_json)
        asked = {each.org_id for each in ready}
        results: list[RowResult] = []
        for first in range(0, len(rows), APPLIED_IN_ONE_TRANSACTION):
            with database.write() as session:
                change = ChangeContext(session, utc_now(), cause.of_command("charging move"))
                batch = rows[first : first + APPLIED_IN_ONE_TRANSACTION]
                is_expected = expect is not None
                results += [
                    _begin(change, row, catalog, settings, is_expected=is_expected if row.org_id in asked else None)
                    for row in batch
                ]
    _show(settings, results, as_json=as_json)
    raise typer.Exit(exit_codes.EXIT_FAILED if any(result == "left" for _, result, _ in results) else 0)


def _ready(database: Database, rows: Sequence[ListedMove], catalog: Catalog, settings: Settings) -> list[ChargingMove]:
    found: list[ChargingMove] = []
    with database.read() as session:
        for row in rows:
            organization = session.get(Organization, row.org_id)
            now = _move_now(session, organization, row, catalog, settings) if organization is not None else None
            if now is not None and now.state == "can_move" and row.is_still(now):
                found.append(now)
    return found


def _begin(
    change: ChangeContext, row: ListedMove, catalog: Catalog, settings: Settings, *, is_expected: bool | None
) -> RowResult:
    """``is_expected`` None: it was not among those about which the operator was asked."""
    organization = organization_commands.lock(change.session, row.org_id)
    now = _move_now(change.session, organization, row, catalog, settings) if organization is not None else None
    if organization is None or now is None:
        return row.org_id, "left", "no organization has this id, or its plan is not in the catalog"
    if now.state != "can_move":
        return row.org_id, now.state, now.reason
    if is_expected is None or not row.is_still(now):
        return row.org_id, "left", _CHANGED
    charging_moves.begin(change, organization, catalog, row.to, is_expected=is_expected)
    return row.org_id, "started", None


def _move_now(
    session: Session, organization: Organization, row: ListedMove, catalog: Catalog, settings: Settings
) -> ChargingMove | None:
    if organization.plan_tier not in catalog.plans:
        return None
    at_stripe = session.get_one(BillingLink, (row.org_id, "stripe"))
    at_lago = session.get_one(BillingLink, (row.org_id, "lago"))
    its_links: dict[Provider, BillingLink] = {"stripe": at_stripe, "lago": at_lago}
    return charging_moves.move_of(organization, its_links, _rules(settings, catalog, row.to))


def _rules(settings: Settings, catalog: Catalog, to: Provider) -> MoveRules:
    emails_invoices = settings.stripe_collection_method == "send_invoice"
    return MoveRules(catalog=catalog, to=to, installation=settings.management, emails_invoices=emails_invoices)


def _sentences(ready: Sequence[ChargingMove]) -> Iterator[str]:
    for each in ready[:_SHOWN_BEFORE_CONFIRMATION]:
        amount = amount_text(each.amount, each.currency)
        yield f"{each.org_id}  {each.name}: {amount} {each.interval}, charged by {PROVIDER_NAMES[each.charged_by]}"
    if len(ready) > _SHOWN_BEFORE_CONFIRMATION:
        yield f"and {len(ready) - _SHOWN_BEFORE_CONFIRMATION} more"
    source = ready[0].charged_by
    yield (
        f"{descriptions.plural(len(ready), 'subscription')} will end in {PROVIDER_NAMES[source]}, and the other "
        f"provider begins a new period after that. What is lost: {charging_file.LOST[source]}."
    )


def _show(settings: Settings, results: Sequence[RowResult], *, as_json: bool) -> None:
    if as_json:
        output.show_json(
            {"results": [{"org_id": org_id, "result": kind, "reason": why} for org_id, kind, why in results]}
        )
        return
    counts = {kind: sum(result == kind for _, result, _ in results) for kind in ("started", "moving", "moved", "left")}
    output.show(
        *(f"{org_id}: not moved: {why}" for org_id, kind, why in results if kind == "left"),
        f"{counts['started']} started now, {counts['moving']} moving since before, {counts['moved']} moved before, "
        f"{counts['left']} left.",
        *stored_change.lines(settings),
    )
