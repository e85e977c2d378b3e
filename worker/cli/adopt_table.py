"""The command that applies an adoption table: row by row, what did not change meanwhile is adopted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from core.adoption import adoption, begun_charge, price_change
from core.adoption.adopter import Adopter, AdoptionResult, AdoptionResultKind
from core.adoption.adoption import AdoptionRules
from core.adoption.begun_charge import BegunCharge
from core.adoption.price_change import PriceChange
from core.adoption.row import AdoptionRow
from core.adoption.table import read_table
from core.adoption.table_errors import AdoptionTableError
from core.common.clock import utc_now
from core.db.database import Database
from core.ports.errors import ProviderError
from core.ports.inventory import Inventory
from core.ports.minor_units import amount_text
from core.ports.spec import PROVIDER_NAMES
from core.reconcile.low_priority_reader import LowPriorityReader
from tasks.base import Runtime
from worker.cli import cause, confirmation, descriptions, exit_codes, output
from worker.cli.exit_codes import CommandFailedError, UsageError
from worker.cli.progress import progress_bar
from worker.cli.worker_runtime import open_worker_runtime

PRICE_CHANGES_SHOWN: Final = 20
READER_PURPOSE: Final = "adoption"
_NOT_ADOPTED: Final[frozenset[AdoptionResultKind]] = frozenset({"left", "rejected"})
_KIND_TEXTS: Final[dict[AdoptionResultKind, str]] = {
    "adopted": "adopted",
    "already_adopted": "adopted before",
    "left": "left",
    "rejected": "rejected",
    "skipped": "skipped",
    "not_tried": "not tried",
}


def apply(  # noqa: PLR0913 - its options
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A table that `adopt discover` wrote.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and check everything, and store nothing.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Adopt the next N that are not adopted yet.")
    ] = None,
    without_marks: Annotated[
        bool,
        typer.Option(
            "--without-marks", help="Add no metadata in Stripe until its first plan change, which needs ours."
        ),
    ] = False,
    yes: confirmation.YesOption = False,
    as_json: output.JsonOption = False,
) -> None:
    """Adopt what a table says: the links get the identities that are there, and nothing is written at a provider.

    Each row is read again just before. One that changed meanwhile is left, with what it was and what it is. What
    `change-to-catalog` changes in a price is shown first, with --limit of those rows that it allows; it changes once
    the organization is managed. Safe to repeat: what is adopted already stays as it is.

    Exit code 0: each row that is to be adopted is; 1: a row was left or rejected, see the output.

    JSON: {"results": [{"org_id", "name", "customers": {provider: id}, "action", "result", "reason", "remarks"}]}. What
    is to be confirmed is on standard error.
    """
    rows = _read(file)
    with open_worker_runtime() as runtime:
        confirm_accounts(runtime)
        adopter = adopter_of(runtime, "adopt apply", with_marks=not without_marks, is_dry_run=dry_run)
        confirmed = partial(confirm_charges, runtime, yes=yes or dry_run, on_stderr=as_json)
        results, failure = apply_confirmed(runtime, adopter, rows, limit, confirmed)
    if as_json:
        output.show_json({"results": [result_json(each) for each in results]})
    else:
        output.show(*_result_lines(results, is_dry_run=dry_run))
    if failure is not None:
        message = f"{failure}; the rows before it are adopted: run the command again to go on"
        raise CommandFailedError(message) from failure
    raise typer.Exit(exit_codes.EXIT_FAILED if any(each.kind in _NOT_ADOPTED for each in results) else 0)


def adopter_of(
    runtime: Runtime, command: str, *, with_marks: bool, is_dry_run: bool = False, takes_their_plan: bool = False
) -> Adopter:
    reader: LowPriorityReader[Inventory] = LowPriorityReader(
        readers=runtime.inventories, purpose=READER_PURPOSE, gates=runtime.reconciler.request_gates
    )
    return Adopter(
        database=runtime.database,
        read=reader,
        rules=AdoptionRules(
            catalog=runtime.catalog,
            policy=runtime.reconciler.policy,
            with_marks=with_marks,
            takes_their_plan=takes_their_plan,
        ),
        clock=utc_now,
        cause=cause.of_command(command),
        is_dry_run=is_dry_run,
    )


def _read(file: Path) -> list[AdoptionRow]:
    try:
        return read_table(file)
    except AdoptionTableError as error:
        raise UsageError(str(error)) from None


def confirm_accounts(runtime: Runtime) -> None:
    """With another account's key, no id in the table means what it says. Raises the provider's error."""
    for error in runtime.reconciler.account_guard.confirm():
        raise error


def confirm_charges(runtime: Runtime, rows: Sequence[AdoptionRow], *, yes: bool, on_stderr: bool = False) -> None:
    """Whatever changes in what is paid, in one confirmation, before anything is stored."""
    if lines := _charge_lines(runtime, rows):
        confirmation.confirm(lines, yes=yes, on_stderr=on_stderr)


def _charge_lines(runtime: Runtime, rows: Sequence[AdoptionRow]) -> list[str]:
    catalog = runtime.catalog
    changes = list(filter(None, (price_change.price_change(row, catalog) for row in rows)))
    begun = list(filter(None, (begun_charge.begun_charge(row, catalog) for row in rows)))
    return [*(price_change_lines(changes) if changes else ()), *(begun_lines(begun) if begun else ())]


def _charged_rows(runtime: Runtime, rows: Sequence[AdoptionRow]) -> list[AdoptionRow]:
    """Those that change in what is paid, unless they are adopted already."""
    catalog = runtime.catalog
    charged = [
        row
        for row in rows
        if price_change.price_change(row, catalog) is not None or begun_charge.begun_charge(row, catalog) is not None
    ]
    return [row for row in charged if not _is_adopted(runtime.database, row)]


def _is_adopted(database: Database, row: AdoptionRow) -> bool:
    with database.read() as session:
        return adoption.adopted_before(session, row) is not None


def price_change_lines(changes: Sequence[PriceChange]) -> Iterator[str]:
    """What each pays, and will pay once it is managed, and the total."""
    yield f"{descriptions.plural(len(changes), 'price')} will change to the catalog's, before discounts:"
    for each in changes[:PRICE_CHANGES_SHOWN]:
        before = "an unknown amount" if each.before is None else amount_text(each.before, each.currency)
        yield f"  {row_name(each.row)}: {before} → {amount_text(each.after, each.currency)} {each.interval}"
    if len(changes) > PRICE_CHANGES_SHOWN:
        yield f"  and {len(changes) - PRICE_CHANGES_SHOWN} more"
    for (currency, interval), difference in price_change.totals(changes).items():
        sign = "-" if difference < 0 else "+"
        yield f"In all {sign}{amount_text(abs(difference), currency)} {interval}"
    if unknown := sum(each.difference is None for each in changes):
        yield f"and {unknown} of them by an amount that is not known"


def begun_lines(charges: Sequence[BegunCharge]) -> Iterator[str]:
    """What each will pay once it is managed, who charges it, and the total."""
    count = descriptions.plural(len(charges), "new subscription")
    yield f"{count} will begin to charge once managed, before discounts:"
    for each in charges[:PRICE_CHANGES_SHOWN]:
        amount = amount_text(each.amount, each.currency)
        yield f"  {row_name(each.row)}: {amount} {each.interval}, charged by {PROVIDER_NAMES[each.provider]}"
    if len(charges) > PRICE_CHANGES_SHOWN:
        yield f"  and {len(charges) - PRICE_CHANGES_SHOWN} more"
    for (currency, interval), amount_in_all in begun_charge.begun_totals(charges).items():
        yield f"In all {amount_text(amount_in_all, currency)} {interval}"


def apply_confirmed(
    runtime: Runtime,
    adopter: Adopter,
    rows: Sequence[AdoptionRow],
    limit: int | None,
    confirmed: Callable[[Sequence[AdoptionRow]], None],
) -> tuple[list[AdoptionResult], ProviderError | None]:
    """Only amounts of rows that are then adopted are confirmed, so those are read and checked before.

    Which rows a limit allows is known only once all were read: a row that is left does not count. A row that the check
    refused is not tried again, because its amount was not confirmed. Raises ``ProviderError`` if it cannot be read.
    """
    charged = _charged_rows(runtime, rows)
    if not charged:
        return apply_rows(adopter, rows, limit)
    to_check = charged if limit is None and not adopter.is_dry_run else rows
    checked, failure = apply_rows(replace(adopter, is_dry_run=True), to_check, limit, "checking")
    if failure is not None:
        raise failure
    confirmed([each.row for each in checked if each.kind == "adopted"])
    if adopter.is_dry_run:
        return checked, None
    not_chosen = {id(each.row): each for each in checked if each.kind != "adopted"}
    applied, failure = apply_rows(adopter, [row for row in rows if id(row) not in not_chosen], None)
    remaining = iter(applied)
    results: list[AdoptionResult] = []
    for row in rows:
        result = not_chosen.get(id(row)) or next(remaining, None)
        if result is None:
            break
        results.append(result)
    return results, failure


def apply_rows(
    adopter: Adopter, rows: Sequence[AdoptionRow], limit: int | None, activity: str = "adopting"
) -> tuple[list[AdoptionResult], ProviderError | None]:
    """The results, and why there are no more of them."""
    results: list[AdoptionResult] = []
    try:
        with progress_bar() as on_progress:
            on_progress(activity, 0, len(rows))
            for result in adopter.apply(rows, limit):
                results.append(result)
                on_progress(activity, len(results), len(rows))
    except ProviderError as error:
        return results, error
    except KeyboardInterrupt:
        adopted = 0 if adopter.is_dry_run else sum(each.kind in {"adopted", "already_adopted"} for each in results)
        show_interruption(f"{adopted} {'is' if adopted == 1 else 'are'} adopted")
        raise
    return results, None


def show_interruption(what: str) -> None:
    """After Ctrl-C, in one line."""
    output.stderr_console().print(f"Stopped. {what}; the same command goes on.", markup=False, soft_wrap=True)


def row_name(row: AdoptionRow) -> str:
    """What an operator knows it by."""
    theirs = (side.name for side in row.sides.values() if side.name)
    return row.our_name or next(theirs, None) or row.org_id or next(iter(row.sides.values())).customer_id


def result_json(result: AdoptionResult) -> dict[str, object]:
    return {
        "org_id": result.org_id,
        "name": row_name(result.row),
        "customers": {provider: side.customer_id for provider, side in result.row.sides.items()},
        "action": result.row.action,
        "result": result.kind,
        "reason": result.reason,
        "remarks": list(result.remarks),
    }


def _result_lines(results: Sequence[AdoptionResult], *, is_dry_run: bool) -> Iterator[RenderableType]:
    for each in results:
        if each.kind in _NOT_ADOPTED or each.remarks:
            yield from result_lines(each, is_dry_run=is_dry_run)
            yield ""
    yield _summary(results, is_dry_run=is_dry_run)


def result_lines(result: AdoptionResult, *, is_dry_run: bool = False) -> Iterator[RenderableType]:
    """Who it is and what became of it, and why and what follows below."""
    ids = ", ".join(
        f"{PROVIDER_NAMES[provider]} {side.external_customer_id or side.customer_id}"
        for provider, side in result.row.sides.items()
    )
    kind = "would be adopted" if is_dry_run and result.kind == "adopted" else _KIND_TEXTS[result.kind]
    yield Text.assemble((row_name(result.row), "bold"), f"  {ids}: {kind}")
    for sentence in filter(None, [result.reason, *result.remarks]):
        yield Padding(Text(sentence), (0, 0, 0, 2), expand=False)


def _summary(results: Sequence[AdoptionResult], *, is_dry_run: bool) -> str:
    counts = Counter(each.kind for each in results)
    parts = [f"{counts[kind]} {text}" for kind, text in _KIND_TEXTS.items() if counts[kind]]
    new = sum(each.is_new for each in results)
    created = f"; {descriptions.plural(new, 'organization')} of them new" if new else ""
    what = "Nothing was stored. It would be: " if is_dry_run else ""
    return f"{what}{', '.join(parts) or 'the table has no rows'}{created}."
