"""Commands that move organizations to another price of their plan: list them, apply the list, withdraw, and show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal

import typer
from sqlalchemy import func, select

from core.catalog.plans import Catalog
from core.common.clock import utc_now
from core.common.validation import InvalidChangeError
from core.db.database import Database
from core.db.models.price_moves import PriceMove
from core.events.event_types import ChangeContext
from core.organizations import commands as organization_commands
from core.ports.errors import RejectedError
from core.ports.minor_units import amount_text
from core.ports.spec import PROVIDER_NAMES
from core.price_moves import due, request, table
from core.price_moves.applying import APPLY_BATCH_SIZE, AppliedKind, AppliedRow, PriceMoveApplier
from core.price_moves.listing import MovePrices, PriceMoveLister
from core.price_moves.request import PriceMoveRequest
from core.price_moves.row import PriceMoveRow
from core.price_moves.table import PriceMoveFileError
from core.reconcile.low_priority_reader import LowPriorityReader
from tasks.base import Runtime
from worker.cli import cause, confirmation, descriptions, exit_codes, output, resources, stored_change
from worker.cli.adopt_table import confirm_accounts
from worker.cli.exit_codes import CommandFailedError, UsageError
from worker.cli.output import Column
from worker.cli.progress import progress_bar
from worker.cli.worker_runtime import open_worker_runtime
from worker.config import settings as settings_of

DEFAULT_NOTICE_DAYS: Final = 30
MOVES_SHOWN: Final = 20
MOVES_READER_PURPOSE: Final = "price_moves"
WhenOption = Literal["now", "period-end"]
_KIND_TEXTS: Final[dict[AppliedKind, str]] = {
    "applied": "applied",
    "already_applied": "applied before",
    "left": "left, because they changed since",
    "overlaps": "moved by another file",
    "not_listed": "listed with the reason why they are not moved",
}


def move(  # noqa: PLR0913 - its options
    *,
    tier: Annotated[str | None, typer.Argument(metavar="[TIER]", help="The plan.")] = None,
    from_code: Annotated[str | None, typer.Option("--from", metavar="CODE", help="The code that was sold.")] = None,
    to_code: Annotated[str | None, typer.Option("--to", metavar="CODE", help="The code of the new price.")] = None,
    when: Annotated[WhenOption, typer.Option(help="When each pays the new price.")] = "period-end",
    notice: Annotated[
        int, typer.Option(metavar="DAYS", min=0, help="How many days before that its notice comes.")
    ] = DEFAULT_NOTICE_DAYS,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the list to this CSV file.")] = None,
    apply: Annotated[Path | None, typer.Option(metavar="FILE", help="Move exactly those in this file.")] = None,
    expect: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="With --apply: they are N, and take no place of the payment brake."),
    ] = None,
    withdraw: Annotated[
        Path | None, typer.Option(metavar="FILE", help="End the moves of this file that have not started.")
    ] = None,
    yes: confirmation.YesOption = False,
) -> None:
    """List who was sold a code and would pay another one, or move exactly those in the list.

    With --out it reads the provider, writes the list and changes nothing. With --apply each organization that is still
    as listed is stored with its day: the event `organization.price_change_scheduled` comes the given number of days
    before, and then the price is changed. Safe to repeat.

    Exit code 1 of --apply: an organization was left, because it changed since it was listed.
    """
    chosen = [each for each in (out, apply, withdraw) if each is not None]
    if len(chosen) != 1:
        message = "say one of --out FILE, which lists them, --apply FILE, and --withdraw FILE"
        raise UsageError(message)
    if out is None and (tier or from_code or to_code):
        message = "the file says the plan and its codes: name only the file"
        raise UsageError(message)
    if expect is not None and apply is None:
        message = "--expect belongs to --apply"
        raise UsageError(message)
    if withdraw is not None:
        _withdraw(withdraw, yes=yes)
    elif apply is not None:
        _apply(apply, expect, yes=yes)
    elif out is not None:
        if tier is None or from_code is None or to_code is None:
            message = "a list needs the plan and both codes: `billing-sync plans move TIER --from CODE --to CODE …`"
            raise UsageError(message)
        with open_worker_runtime() as runtime:
            _list(runtime, _checked(runtime.catalog, tier, (from_code, to_code), when, notice), out)


def _checked(
    catalog: Catalog, tier: str, codes: tuple[str, str], when: WhenOption, notice_days: int
) -> PriceMoveRequest:
    try:
        return request.checked(
            catalog,
            tier,
            from_code=codes[0],
            to_code=codes[1],
            at_period_end=when == table.PERIOD_END,
            notice_days=notice_days,
        )
    except InvalidChangeError as error:
        raise UsageError(str(error)) from error


def _lister(runtime: Runtime) -> PriceMoveLister:
    return PriceMoveLister(
        database=runtime.database,
        read=LowPriorityReader(
            readers=runtime.inventories, purpose=MOVES_READER_PURPOSE, gates=runtime.reconciler.request_gates
        ),
        installation=runtime.reconciler.management,
        clock=utc_now,
    )


def _list(runtime: Runtime, requested: PriceMoveRequest, out: Path) -> None:
    rows: list[PriceMoveRow] = []
    try:
        table.refuse_unwritable(out)
        confirm_accounts(runtime)
        lister = _lister(runtime)
        prices = lister.prices(requested)
        with progress_bar() as on_progress:
            total = lister.count(requested)
            on_progress("reading", 0, total)
            for row in lister.rows(requested, prices):
                rows.append(row)
                on_progress("reading", len(rows), max(total, len(rows)))
        table.write(out, rows)
    except PriceMoveFileError as error:
        raise UsageError(str(error)) from None
    except RejectedError as error:
        raise UsageError(error.message) from error
    moved = [row for row in rows if row.reason is None]
    output.show(*_lines(moved), *_reason_lines(rows))
    output.show(f"{out} lists {descriptions.plural(len(rows), 'organization')}. Nothing was changed.")
    if moved:
        output.show(f"→ `billing-sync plans move --apply {out} --expect {len(moved)}` moves them")


def _lines(rows: Sequence[PriceMoveRow]) -> Iterator[str]:
    yield f"{descriptions.plural(len(rows), 'organization')} would pay another price, before discounts:"
    for row in rows[:MOVES_SHOWN]:
        before = "?" if row.amount_before is None else amount_text(row.amount_before, row.currency)
        after = amount_text(row.amount_after, row.currency)
        yield f"  {row.org_id}  {row.name}: {before} → {after} each {row.interval} from {_day(row.effective_at)} on"
    if len(rows) > MOVES_SHOWN:
        yield f"  and {len(rows) - MOVES_SHOWN} more"
    totals: Counter[tuple[str, str]] = Counter()
    for row in rows:
        totals[row.currency, row.interval] += row.amount_after - (row.amount_before or 0)
    for (currency, interval), difference in totals.items():
        sign = "-" if difference < 0 else "+"
        yield f"In all {sign}{amount_text(abs(difference), currency)} each {interval}"


def _reason_lines(rows: Sequence[PriceMoveRow]) -> Iterator[str]:
    reasons = Counter(row.reason for row in rows if row.reason is not None)
    for reason, count in reasons.most_common(MOVES_SHOWN):
        yield f"{count} not moved: {reason}"


def _day(moment: datetime | None) -> str:
    return "an unknown day" if moment is None else f"{moment:%Y-%m-%d}"


def _read(file: Path) -> list[PriceMoveRow]:
    try:
        return table.read(file)
    except PriceMoveFileError as error:
        raise UsageError(str(error)) from None


def _apply(file: Path, expected: int | None, *, yes: bool) -> None:
    rows = _read(file)
    with open_worker_runtime() as runtime:
        confirm_accounts(runtime)
        _refuse_other_prices(runtime, rows)
        applier = PriceMoveApplier(
            database=runtime.database,
            installation=runtime.reconciler.management,
            clock=utc_now,
            cause=cause.of_command("plans move"),
            is_expected=expected is not None,
        )
        checked = applier.check(rows)
        _refuse_overlap(file, checked)
        moved = [each.row for each in checked if each.kind == "applied"]
        number = len(moved) + sum(each.kind == "already_applied" for each in checked)
        if expected is not None and expected != number:
            message = f"{number} would be moved, not {expected}, so nothing was changed"
            raise UsageError(message)
        results = checked
        if moved:
            confirmation.confirm(list(_lines(moved)), yes=yes)
            results = list(applier.apply(rows))
        output.show(*_result_lines(results))
        output.show(*stored_change.lines(settings_of.read()))
    raise typer.Exit(exit_codes.EXIT_FAILED if any(each.kind in {"left", "overlaps"} for each in results) else 0)


def _refuse_other_prices(runtime: Runtime, rows: Sequence[PriceMoveRow]) -> None:
    """The amounts of the catalog and of the provider must be those of the list."""
    lister = _lister(runtime)
    known: dict[tuple[str, str, str], MovePrices] = {}
    for row in rows:
        key = (row.tier, row.from_code, row.to_code)
        if key not in known:
            when: WhenOption = "period-end" if row.at_period_end else "now"
            requested = _checked(runtime.catalog, row.tier, (row.from_code, row.to_code), when, row.notice_days)
            try:
                known[key] = lister.prices(requested)
            except RejectedError as error:
                raise CommandFailedError(error.message) from error
        prices = known[key]
        plan = runtime.catalog.plan(row.tier)
        is_listed = (prices.amount_after, prices.after.currency) == (row.amount_after, row.currency)
        if not is_listed or (plan.code(row.provider) == row.to_code and plan.amount != row.amount_after):
            message = (
                f"{row.to_code} costs {amount_text(prices.amount_after, prices.after.currency)} at "
                f"{PROVIDER_NAMES[row.provider]} and {amount_text(plan.amount, plan.currency)} in the catalog, and the "
                f"list says {amount_text(row.amount_after, row.currency)}: list them again"
            )
            raise CommandFailedError(message)


def _refuse_overlap(file: Path, checked: Sequence[AppliedRow]) -> None:
    overlapping = [each for each in checked if each.kind == "overlaps"]
    if overlapping:
        first = overlapping[0]
        count = descriptions.plural(len(overlapping), "organization")
        message = (
            f"{count} of {file} cannot be moved, because {first.reason}, such as {first.row.org_id}; withdraw that "
            "one with `billing-sync plans move --withdraw FILE`, or leave out the rows"
        )
        raise UsageError(message)


def _result_lines(results: Sequence[AppliedRow]) -> Iterator[str]:
    for each in results:
        if each.kind in {"left", "overlaps"}:
            yield f"{each.row.org_id}  {each.row.name}: {each.reason}"
    counts = Counter(each.kind for each in results)
    yield ", ".join(f"{counts[kind]} {text}" for kind, text in _KIND_TEXTS.items() if counts[kind]) or "no rows"


def _withdraw(file: Path, *, yes: bool) -> None:
    rows = [row for row in _read(file) if row.reason is None]
    settings = settings_of.read()
    warning = f"The moves of {descriptions.plural(len(rows), 'organization')} end, unless they have started."
    with resources.open_database(settings) as database:
        confirmation.confirm([warning], yes=yes)
        ended = sum(_withdraw_rows(database, rows))
    output.show(f"Withdrawn: {ended} of {len(rows)}. `billing-sync plans moves` shows those that have started.")


def _withdraw_rows(database: Database, rows: Sequence[PriceMoveRow]) -> Iterator[int]:
    for first in range(0, len(rows), APPLY_BATCH_SIZE):
        with database.write() as session:
            change = ChangeContext(session, utc_now(), cause.of_command("plans move"))
            for row in rows[first : first + APPLY_BATCH_SIZE]:
                organization_commands.lock(session, row.org_id)
                yield len(due.withdraw(change, row.org_id, row.from_code, row.to_code))


def moves(*, limit: output.LimitOption = 50, as_json: output.JsonOption = False) -> None:
    """List the moves to another price that are open, and how many ended.

    JSON: {"counts": {state: number}, "open": [{"org_id", "provider", "tier", "from_code", "to_code", "amount_before",
    "amount_after", "currency", "at_period_end", "effective_at", "noticed_at", "started_at", "state", "is_expected",
    "problem"}]}
    """
    with resources.open_database(settings_of.read()) as database, database.read() as session:
        counts = dict(session.execute(select(PriceMove.state, func.count()).group_by(PriceMove.state)).all())
        found = session.scalars(
            select(PriceMove)
            .where(PriceMove.ended_at.is_(None))
            .order_by(PriceMove.effective_at, PriceMove.org_id)
            .limit(limit)
        ).all()
    if as_json:
        output.show_json({"counts": counts, "open": [_json(each) for each in found]})
        return
    if found:
        output.show(output.table(found, _columns()))
    output.show(", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "There are no moves.")


_JSON_FIELDS: Final = (
    "org_id",
    "provider",
    "tier",
    "from_code",
    "to_code",
    "amount_before",
    "amount_after",
    "currency",
    "at_period_end",
    "effective_at",
    "noticed_at",
    "started_at",
    "state",
    "is_expected",
    "problem",
)


def _json(found: PriceMove) -> dict[str, object]:
    return {name: getattr(found, name) for name in _JSON_FIELDS}


def _columns() -> list[Column[PriceMove]]:
    return [
        Column("organization", lambda row: row.org_id, kind="id"),
        Column("from", lambda row: amount_text(row.amount_before, row.currency)),
        Column("to", lambda row: amount_text(row.amount_after, row.currency)),
        Column("day", lambda row: _day(row.effective_at)),
        Column("state", lambda row: row.state),
        Column("problem", lambda row: row.problem, kind="fold"),
    ]
