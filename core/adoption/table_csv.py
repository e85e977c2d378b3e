"""The adoption table as CSV: for a spreadsheet, and back.

It is written as spreadsheets open it: UTF-8 with a byte order mark, without which Excel takes it for another encoding.
It is read as they save it: with or without the mark, with commas, semicolons or tabs, with any line ends, with the
columns in another order, and with rows left out. What they damage is refused by line and column (``cells``).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TextIO

from core.adoption import cells
from core.adoption.columns import (
    CHECK_COLUMN,
    FOUND_COLUMNS,
    HEADER,
    OPERATOR_COLUMNS,
    ROW_COLUMN,
    UnreadableCellError,
    row_of,
    texts_of,
    to_cell,
)
from core.adoption.row import AdoptionRow
from core.adoption.table_errors import AdoptionTableError

DELIMITERS: Final = (",", ";", "\t")
_WRITE_AGAIN: Final = "undo that in the table, or write it again with `billing-sync adopt discover`"


def write_csv(file: TextIO, rows: Iterable[AdoptionRow]) -> int:
    """``file`` is opened with ``newline=""``. Returns the number of rows."""
    writer = csv.writer(file)
    file.write("\ufeff")
    writer.writerow(HEADER)
    count = 0
    for row in rows:
        writer.writerow(_cells_of(row))
        count += 1
    return count


def _cells_of(row: AdoptionRow) -> list[str]:
    texts = texts_of(row)
    written = {name: to_cell(name, text) for name, text in texts.items()}
    check = cells.row_check({name: cells.unguarded(written[name]) for name in FOUND_COLUMNS})
    written |= {ROW_COLUMN: to_cell(ROW_COLUMN, cells.row_name(check)), CHECK_COLUMN: check}
    return [written[name] for name in HEADER]


def read_csv(path: Path) -> Iterator[tuple[str, AdoptionRow | AdoptionTableError]]:
    """Each row with its place, such as ``line 3``, or what is wrong in it. Raises ``AdoptionTableError`` where nothing
    can be read on.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from _rows(path, file)
    except UnicodeDecodeError:
        message = f"{path} is not UTF-8 text; save it as CSV UTF-8"
        raise AdoptionTableError(message) from None


def _rows(path: Path, file: TextIO) -> Iterator[tuple[str, AdoptionRow | AdoptionTableError]]:
    first_line, first_number = file.readline(), 1
    if first_line.strip().strip('"').lower().startswith("sep="):  # says Excel the delimiter
        first_line, first_number = file.readline(), 2
    delimiter, header = _header(path, first_line)
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    line = first_number + 1  # of the row that is read next
    while True:
        try:
            found = next(reader, None)
        except csv.Error as error:
            message = f"{path} line {line} cannot be read ({error}): the file was cut, or a quote is missing in it"
            raise AdoptionTableError(message) from None
        if found is None:
            return
        place = f"line {line}"
        line = reader.line_num + first_number + 1
        if any(cell.strip() for cell in found):
            yield place, _row_or_error(path, place, header, found)


def _row_or_error(path: Path, place: str, header: Sequence[str], found: list[str]) -> AdoptionRow | AdoptionTableError:
    try:
        return _row(path, place, _named_cells(path, place, header, found))
    except AdoptionTableError as error:
        return error


def _header(path: Path, first_line: str) -> tuple[str, Sequence[str]]:
    """The delimiter, and the columns in the order of the file."""
    header: list[str] = []
    for delimiter in DELIMITERS:
        header = [name.strip() for name in next(csv.reader([first_line], delimiter=delimiter), [])]
        if len(header) > 1:
            break
    else:
        message = (
            f"{path} is no adoption table: its first line names no columns; `billing-sync adopt discover` writes one"
        )
        raise AdoptionTableError(message)
    while header and not header[-1]:
        header.pop()
    missing = [name for name in HEADER if name not in header]
    unknown = [name for name in header if name not in HEADER]
    repeated = [name for name in HEADER if header.count(name) > 1]
    for names, problem in ((missing, "is missing"), (unknown, "is not one of the table's"), (repeated, "comes twice")):
        if names:
            message = f"{path} line 1: the column {names[0] or 'without a name'} {problem}; {_WRITE_AGAIN}"
            raise AdoptionTableError(message)
    return delimiter, header


def _named_cells(path: Path, place: str, header: Sequence[str], found: list[str]) -> dict[str, str]:
    while len(found) > len(header) and not found[-1].strip():
        found.pop()
    if len(found) != len(header):
        what = "the file was cut in it" if len(found) < len(header) else "a cell of it was split"
        message = f"{path} {place} has {len(found)} cells instead of {len(header)}: {what}; {_WRITE_AGAIN}"
        raise AdoptionTableError(message)
    return dict(zip(header, found, strict=True))


def _row(path: Path, place: str, cells_by_name: Mapping[str, str]) -> AdoptionRow:
    texts = {name: cells.unguarded(cells_by_name[name]) for name in OPERATOR_COLUMNS}
    texts |= _unchanged_texts(path, place, cells_by_name)
    try:
        return row_of(texts)
    except UnreadableCellError as error:
        message = f"{path} {place}, column {error.column}: {error.message}"
        raise AdoptionTableError(message) from None


def _unchanged_texts(path: Path, place: str, cells_by_name: Mapping[str, str]) -> dict[str, str]:
    """The texts of what was found, if they are as they were written. Some programs drop the apostrophe of a guard."""
    check = cells_by_name[CHECK_COLUMN].strip()
    digests = cells.cell_digests(check, FOUND_COLUMNS)
    if digests is None:
        message = (
            f"{path} {place}, column {CHECK_COLUMN}: it was changed, and it is what shows damage to the other cells; "
            f"{_WRITE_AGAIN}"
        )
        raise AdoptionTableError(message)
    texts: dict[str, str] = {}
    for name in FOUND_COLUMNS:
        cell = cells_by_name[name]
        same = (text for text in (cells.unguarded(cell), cell) if cells.cell_digest(name, text) == digests[name])
        text = next(same, None)
        if text is None:
            shown = cell if len(cell) <= _SHOWN_LENGTH else f"{cell[:_SHOWN_LENGTH]}…"
            message = f"{path} {place}, column {name}: it is not as it was written (now {shown!r}); {_WRITE_AGAIN}"
            raise AdoptionTableError(message)
        texts[name] = text
    if cells.row_check(texts) != check:
        message = f"{path} {place}: a cell that only `discover` writes was changed; {_WRITE_AGAIN}"
        raise AdoptionTableError(message)
    _refuse_another_row(path, place, cells_by_name[ROW_COLUMN], check)
    return texts


def _refuse_another_row(path: Path, place: str, cell: str, check: str) -> None:
    """What an operator may change cannot be in the digest, so this is what ties it to the customers of its line."""
    if cells.unguarded(cell.strip()) != cells.row_name(check):
        message = (
            f"{path} {place}, column {ROW_COLUMN}: it does not match the rest of the line, as if some columns were "
            f"sorted or moved without the others; {_WRITE_AGAIN}"
        )
        raise AdoptionTableError(message)


_SHOWN_LENGTH: Final = 40
