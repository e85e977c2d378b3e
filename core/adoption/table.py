"""The adoption table's file: written once, for its owner only, and read whole or not at all.

Its ending decides the format: ``.csv`` or ``.json``. An existing file is never replaced, because an operator may have
worked in it; and a file is there only when it is complete.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, TextIO

from core.adoption.row import AdoptionAction, AdoptionRow
from core.adoption.table_csv import read_csv, write_csv
from core.adoption.table_errors import AdoptionTableError
from core.adoption.table_json import read_json, write_json
from core.organizations.validation import ORGANIZATION_ID_PATTERN
from core.ports.spec import PROVIDER_NAMES, Provider

ERRORS_SHOWN: Final = 10
TABLE_ENDINGS: Final = (".csv", ".json")
APPLIED_ACTIONS: Final[frozenset[AdoptionAction]] = frozenset({"adopt", "adopt-keep-price", "change-to-catalog"})


def refuse_unwritable(path: Path) -> None:
    """Call before the accounts are read, which takes long. Raises ``AdoptionTableError``."""
    _ending(path)
    if path.exists() or path.is_symlink():
        message = f"{path} exists already and is never replaced; choose another name, or move it away"
        raise AdoptionTableError(message)
    if not path.parent.is_dir():
        message = f"{path.parent} is no folder; create it, or choose another one"
        raise AdoptionTableError(message)


def write_table(path: Path, rows: Iterable[AdoptionRow]) -> int:
    """Returns the number of rows. Raises ``AdoptionTableError``, and then writes nothing."""
    refuse_unwritable(path)
    ending = _ending(path)
    return write_new_file(path, lambda file: write_csv(file, rows) if ending == ".csv" else write_json(file, rows))


def write_new_file(path: Path, write: Callable[[TextIO], int]) -> int:
    """For its owner only, and never in place of another one. Returns what ``write`` does.

    Raises ``AdoptionTableError``, and then there is no file.
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)  # mode 0600
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
                count = write(file)
                file.flush()
                os.fsync(descriptor)
            path.hardlink_to(temporary)  # refuses a file that somebody has written meanwhile
        finally:
            temporary.unlink(missing_ok=True)
    except FileExistsError:
        message = f"{path} exists already and is never replaced; choose another name, or move it away"
        raise AdoptionTableError(message) from None
    except OSError as error:
        message = f"{path} cannot be written ({error.strerror or error}): choose another folder, or free some space"
        raise AdoptionTableError(message) from None
    return count


def read_table(path: Path) -> list[AdoptionRow]:
    """All rows, each of which may be applied as it is. Raises ``AdoptionTableError``, and then none counts."""
    ending = _ending(path)
    try:
        return list(_consistent(path, read_csv(path) if ending == ".csv" else read_json(path)))
    except FileNotFoundError:
        message = f"{path} is not there; `billing-sync adopt discover --out {path}` writes it"
        raise AdoptionTableError(message) from None
    except OSError as error:
        message = f"{path} cannot be read ({error.strerror or error})"
        raise AdoptionTableError(message) from None


def _ending(path: Path) -> str:
    ending = path.suffix.lower()
    if ending not in TABLE_ENDINGS:
        message = f"{path} does not end with .csv or .json, which says how the table is written"
        raise AdoptionTableError(message)
    return ending


def _consistent(path: Path, found: Iterable[tuple[str, AdoptionRow | AdoptionTableError]]) -> Iterator[AdoptionRow]:
    """Raises ``AdoptionTableError`` with the first errors after all rows were read."""
    rows = list(found)
    organizations: dict[str, str] = {}
    customers: dict[tuple[Provider, str], str] = {}
    errors: list[str] = []
    owners: dict[str, list[tuple[str, AdoptionRow]]] = {}
    for place, row in rows:
        if not isinstance(row, AdoptionTableError):
            owners.setdefault(row.proposed_org_id or "", []).append((place, row))
    for place, row in rows:
        if isinstance(row, AdoptionTableError):
            errors.append(str(row))
            continue
        problem = (
            next(_problems(row), None)
            or _of_another_row(row, owners)
            or _repetition(place, row, organizations, customers)
        )
        if problem is None:
            yield row
        else:
            column, sentence = problem
            errors.append(f"{path} {place}, column {column}: {sentence}")
    if errors:
        more = [f"and {len(errors) - ERRORS_SHOWN} more"] if len(errors) > ERRORS_SHOWN else []
        raise AdoptionTableError("\n".join([*errors[:ERRORS_SHOWN], *more]))


def _problems(row: AdoptionRow) -> Iterator[tuple[str, str]]:
    """The column and the sentence of what cannot be, whatever the provider has."""
    if row.org_id is not None and not ORGANIZATION_ID_PATTERN.fullmatch(row.org_id):
        yield "org_id", f"{row.org_id!r} is no id of an organization, such as org_…; `billing-sync orgs` lists them"
    if not row.sides:
        yield "stripe_customer_id", "it is empty, and so is lago_customer_id: the row names no customer"
    for column, source in (("name_source", row.name_source), ("email_source", row.email_source)):
        if source != "ours" and source not in row.sides:
            yield column, f"{source} has no customer in this row; write {' or '.join((*row.sides, 'ours'))}"
    if row.action in APPLIED_ACTIONS and row.plan_tier is None:
        yield "plan_tier", f"it is empty, and {row.action} needs a plan of plans.toml"
    if row.action in APPLIED_ACTIONS and row.org_id is None and row.name_source == "ours":
        yield "name_source", f"a new organization has no name of ours; write {' or '.join(row.sides)}"


def _of_another_row(row: AdoptionRow, owners: Mapping[str, list[tuple[str, AdoptionRow]]]) -> tuple[str, str] | None:
    """An ``org_id`` that another row was proposed with, as if the column was sorted without the others.

    It may be moved alone, from a row that is skipped: a sorted column has a row that is not.
    """
    if row.org_id is None or row.org_id == row.proposed_org_id:
        return None
    for place, owner in owners.get(row.org_id, ()):
        if owner.action != "skip" or owner.org_id is not None:
            return "org_id", (
                f"{row.org_id} was proposed for {place}, as if org_id was sorted without the other columns; if it is "
                f"meant, choose skip in {place} and leave its org_id empty"
            )
    return None


def _repetition(
    place: str, row: AdoptionRow, organizations: dict[str, str], customers: dict[tuple[Provider, str], str]
) -> tuple[str, str] | None:
    """An organization or a customer that an earlier row is about already, if both rows would be applied."""
    if row.action not in APPLIED_ACTIONS:
        return None
    if row.org_id is not None and (earlier := organizations.setdefault(row.org_id, place)) != place:
        return "org_id", f"{row.org_id} is in {earlier}, too; choose skip for one of them"
    for provider, side in row.sides.items():
        earlier = customers.setdefault((provider, side.customer_id), place)
        if earlier != place:
            name = PROVIDER_NAMES[provider]
            return f"{provider}_customer_id", f"{side.customer_id} at {name} is in {earlier}, too; choose skip for one"
    return None
