"""The adoption table as JSON: one object a row, for programs. Amounts are whole numbers of ISO minor units."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Final, TextIO

from pydantic import TypeAdapter, ValidationError

from core.adoption.row import AdoptionRow, AdoptionSide
from core.adoption.table_errors import AdoptionTableError
from core.ports.spec import PROVIDERS

_ROW_ADAPTER: Final = TypeAdapter(AdoptionRow)
_ROW_FIELDS: Final = tuple(each.name for each in fields(AdoptionRow))
_SIDE_FIELDS: Final = tuple(each.name for each in fields(AdoptionSide))


def write_json(file: TextIO, rows: Iterable[AdoptionRow]) -> int:
    """Returns the number of rows, each of which is one line."""
    separator, count = '{"rows": [\n', 0
    for row in rows:
        file.write(separator + _ROW_ADAPTER.dump_json(row).decode("utf-8"))
        separator, count = ",\n", count + 1
    file.write('{"rows": []}\n' if count == 0 else "\n]}\n")
    return count


def read_json(path: Path) -> Iterator[tuple[str, AdoptionRow | AdoptionTableError]]:
    """Each row with its place, such as ``row 3``, or what is wrong in it. Raises ``AdoptionTableError`` where nothing
    can be read.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        message = f"{path} is not UTF-8 text; save it as UTF-8"
        raise AdoptionTableError(message) from None
    except json.JSONDecodeError as error:
        message = f"{path} line {error.lineno}, column {error.colno}: {error.msg}: it is no JSON, or the file was cut"
        raise AdoptionTableError(message) from None
    rows = document.get("rows") if isinstance(document, dict) else None
    if not isinstance(rows, list):
        message = f'{path} is no adoption table: it is no object with "rows"; `billing-sync adopt discover` writes one'
        raise AdoptionTableError(message)
    for number, row in enumerate(rows, 1):
        yield f"row {number}", _row_or_error(path, number, row)


def _row_or_error(path: Path, number: int, row: object) -> AdoptionRow | AdoptionTableError:
    try:
        return _row(path, number, row)
    except AdoptionTableError as error:
        return error


def _row(path: Path, number: int, row: object) -> AdoptionRow:
    _refuse_other_fields(path, number, "", row, _ROW_FIELDS)
    sides = row.get("sides") if isinstance(row, dict) else None
    if isinstance(sides, dict):
        for name, side in sides.items():
            if name not in PROVIDERS:
                message = f"{path} row {number}: sides.{name} is no provider; it is stripe or lago"
                raise AdoptionTableError(message)
            _refuse_other_fields(path, number, f"sides.{name}.", side, _SIDE_FIELDS)
    try:
        return _ROW_ADAPTER.validate_json(json.dumps(row), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        message = f"{path} row {number}, field {name}: {first['msg']} (got {first['input']!r})"
        raise AdoptionTableError(message) from None


def _refuse_other_fields(path: Path, number: int, prefix: str, found: object, names: tuple[str, ...]) -> None:
    if not isinstance(found, Mapping):
        message = f"{path} row {number}: {prefix or 'it '}is no object; each row is one"
        raise AdoptionTableError(message)
    for name in names:
        if name not in found:
            message = f"{path} row {number}: the field {prefix}{name} is missing; write null where there is no value"
            raise AdoptionTableError(message)
    for name in found:
        if name not in names:
            message = f"{path} row {number}: the field {prefix}{name} is not one of the table's; remove it"
            raise AdoptionTableError(message)
