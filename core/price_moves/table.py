"""The file of a list of price moves: CSV for a spreadsheet, written once, and read whole or not at all.

Rows may be left out. Whatever else is changed in it is refused by line and column: an operator decides who is moved,
not what they pay.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, TextIO

from core.adoption import cells, table
from core.adoption.table_csv import DELIMITERS
from core.adoption.table_errors import AdoptionTableError
from core.ports.spec import PROVIDERS, Provider
from core.price_moves.row import INTERVAL_PATTERN, MAX_NOTICE_DAYS, PriceMoveRow

COLUMNS: Final = (
    "org_id",
    "name",
    "reason_not_moved",
    "provider",
    "tier",
    "from",
    "to",
    "old_amount",
    "new_amount",
    "currency",
    "interval",
    "when",
    "day",
    "notice_days",
    "version",
    "sold_price",
)
CHECK: Final = "check"
PERIOD_END: Final = "period-end"
NOW: Final = "now"
MAX_ROWS: Final = 1_000_000
_AGAIN: Final = "write the list again with `billing-sync plans move`"


class PriceMoveFileError(Exception):
    """The file cannot be read or written. The message names the file, the line and the column."""


def refuse_unwritable(path: Path) -> None:
    """Call before the provider is read, which takes long. Raises ``PriceMoveFileError``."""
    if path.suffix.lower() != ".csv":
        message = f"{path} does not end with .csv"
        raise PriceMoveFileError(message)
    try:
        table.refuse_unwritable(path)
    except AdoptionTableError as error:
        raise PriceMoveFileError(str(error)) from None


def write(path: Path, rows: Iterable[PriceMoveRow]) -> int:
    """Returns the number of rows. Raises ``PriceMoveFileError``, and then there is no file."""
    refuse_unwritable(path)
    try:
        return table.write_new_file(path, lambda file: _write_rows(file, rows))
    except AdoptionTableError as error:
        raise PriceMoveFileError(str(error)) from None


def _write_rows(file: TextIO, rows: Iterable[PriceMoveRow]) -> int:
    writer = csv.writer(file)
    file.write("\ufeff")
    writer.writerow((*COLUMNS, CHECK))
    count = 0
    for row in rows:
        texts = _texts(row)
        written = {name: cells.guarded(text) for name, text in texts.items()}
        check = cells.row_check({name: cells.unguarded(cell) for name, cell in written.items()})
        writer.writerow((*written.values(), check))
        count += 1
    return count


def _texts(row: PriceMoveRow) -> dict[str, str]:
    values = (
        row.org_id,
        row.name,
        row.reason or "",
        row.provider,
        row.tier,
        row.from_code,
        row.to_code,
        "" if row.amount_before is None else str(row.amount_before),
        str(row.amount_after),
        row.currency,
        row.interval,
        PERIOD_END if row.at_period_end else NOW,
        cells.moment_cell(row.effective_at),
        str(row.notice_days),
        str(row.version),
        row.sold_price_id or "",
    )
    return dict(zip(COLUMNS, values, strict=True))


def read(path: Path) -> list[PriceMoveRow]:
    """All rows, by ascending id. Raises ``PriceMoveFileError``, and then none counts."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(_read_rows(path, file))
    except FileNotFoundError:
        message = f"{path} is not there; `billing-sync plans move … --out {path}` writes it"
        raise PriceMoveFileError(message) from None
    except UnicodeDecodeError:
        message = f"{path} is not UTF-8 text; save it as CSV UTF-8"
        raise PriceMoveFileError(message) from None
    except OSError as error:
        message = f"{path} cannot be read ({error.strerror or error})"
        raise PriceMoveFileError(message) from None
    org_ids = [row.org_id for row in rows]
    repeated = next((each for each in org_ids if org_ids.count(each) > 1), None) if _repeats(org_ids) else None
    if repeated is not None:
        message = f"{path} has {repeated} in two lines; {_AGAIN}"
        raise PriceMoveFileError(message)
    return sorted(rows, key=lambda row: row.org_id)


def _repeats(org_ids: list[str]) -> bool:
    return len(set(org_ids)) < len(org_ids)


def _read_rows(path: Path, file: TextIO) -> Iterator[PriceMoveRow]:
    first_line = file.readline()
    for delimiter in DELIMITERS:
        header = [name.strip() for name in next(csv.reader([first_line], delimiter=delimiter), [])]
        if sorted(header) == sorted((*COLUMNS, CHECK)):
            break
    else:
        message = f"{path} is no list of price moves: its first line does not name their columns; {_AGAIN}"
        raise PriceMoveFileError(message)
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    try:
        for number, found in enumerate(reader, 2):
            if not any(cell.strip() for cell in found):
                continue
            if len(found) != len(header) or number > MAX_ROWS:
                message = f"{path} line {number} has {len(found)} cells instead of {len(header)}; {_AGAIN}"
                raise PriceMoveFileError(message)
            yield _row(path, number, dict(zip(header, found, strict=True)))
    except csv.Error as error:
        message = f"{path} line {reader.line_num + 1} cannot be read ({error}): the file was cut, or a quote is missing"
        raise PriceMoveFileError(message) from None


def _row(path: Path, number: int, found: Mapping[str, str]) -> PriceMoveRow:
    check = found[CHECK].strip()
    digests = cells.cell_digests(check, COLUMNS) or {}
    texts: dict[str, str] = {}
    for name in COLUMNS:
        same = (each for each in (cells.unguarded(found[name]), found[name]) if _is_written(name, each, digests))
        text = next(same, None)
        if text is None:
            message = f"{path} line {number}, column {name}: it is not as it was written; {_AGAIN}"
            raise PriceMoveFileError(message)
        texts[name] = text
    message = f"{path} line {number}: it is not as it was written; {_AGAIN}"
    if cells.row_check(texts) != check:
        raise PriceMoveFileError(message)
    try:
        return _row_of(texts)
    except ValueError:
        raise PriceMoveFileError(message) from None


def _is_written(name: str, text: str, digests: Mapping[str, str]) -> bool:
    return cells.cell_digest(name, text) == digests.get(name)


def _row_of(texts: Mapping[str, str]) -> PriceMoveRow:
    """Raises ``ValueError``."""
    amount_after, notice_days = cells.whole_number_of(texts["new_amount"]), cells.whole_number_of(texts["notice_days"])
    version = cells.whole_number_of(texts["version"])
    is_readable = INTERVAL_PATTERN.fullmatch(texts["interval"]) and texts["when"] in {NOW, PERIOD_END}
    if amount_after is None or notice_days is None or version is None or not is_readable:
        raise ValueError(texts)
    if notice_days > MAX_NOTICE_DAYS:
        raise ValueError(notice_days)
    return PriceMoveRow(
        org_id=texts["org_id"],
        name=texts["name"],
        provider=_provider(texts["provider"]),
        tier=texts["tier"],
        from_code=texts["from"],
        to_code=texts["to"],
        amount_before=cells.whole_number_of(texts["old_amount"]),
        amount_after=amount_after,
        currency=texts["currency"],
        interval=texts["interval"],
        at_period_end=texts["when"] == PERIOD_END,
        effective_at=cells.moment_of(texts["day"]),
        notice_days=notice_days,
        version=version,
        sold_price_id=texts["sold_price"] or None,
        reason=texts["reason_not_moved"] or None,
    )


def _provider(text: str) -> Provider:
    for provider in PROVIDERS:
        if provider == text:
            return provider
    raise ValueError(text)
