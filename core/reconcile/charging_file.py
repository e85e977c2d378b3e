"""The list of ``charging move``: a CSV file that is written once, and of which ``--apply`` moves exactly the rows.

Each text that a spreadsheet would rewrite has an apostrophe before it. Which organization a row
is about, and as which state of it, is compared with the database again, so a row that was damaged moves nobody else.
"""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from core.ports.spec import PROVIDERS, Provider
from core.reconcile.charging_moves import ChargingMove

CHARGING_FILE_COLUMNS: Final = (
    "org_id",
    "name",
    "version",
    "tier",
    "amount_in_minor_units",
    "currency",
    "interval",
    "charged_by",
    "move_to",
    "customer_id",
    "subscription_id",
    "payer_id",
    "lost",
    "not_moved_because",
)
MAX_CHARGING_ROWS: Final = 100_000
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "'")
LOST: Final[dict[Provider, str]] = {
    "lago": "Lago forgets the payment methods of the payer; a credit note of Lago stays there, and nothing uses it",
    "stripe": (
        "credit for paid time stays on the balance in Stripe; Stripe's payment methods stay; without a usage plan "
        "nobody pays for the rest of Lago's month"
    ),
}


class ChargingFileError(Exception):
    """The file cannot be read or written. The message names it, the line, and the way out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedMove:
    """A row: the organization as it was listed."""

    org_id: str
    version: int
    tier: str
    subscription_id: str | None
    payer_id: str | None
    to: Provider

    def is_still(self, move: ChargingMove) -> bool:
        found = (move.version, move.tier, move.subscription_id, move.payer_id)
        return found == (self.version, self.tier, self.subscription_id, self.payer_id)


def write_moves(path: Path, moves: Iterable[ChargingMove], to: Provider) -> None:
    """A file that exists is never replaced. Raises ``ChargingFileError``, and then writes nothing."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)  # mode 0600
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(CHARGING_FILE_COLUMNS)
                writer.writerows([_guarded(cell) for cell in _cells(move, to)] for move in moves)
                file.flush()
                os.fsync(file.fileno())
            path.hardlink_to(temporary)  # refuses a file that is there
        finally:
            temporary.unlink(missing_ok=True)
    except FileExistsError:
        message = f"{path} exists already and is never replaced: choose another name, or move it away"
        raise ChargingFileError(message) from None
    except OSError as error:
        message = f"{path} cannot be written ({error.strerror or error}): choose another folder, or free some space"
        raise ChargingFileError(message) from None


def read_moves(path: Path) -> list[ListedMove]:
    """All rows or none. Raises ``ChargingFileError``."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            if tuple(reader.fieldnames or ()) != CHARGING_FILE_COLUMNS:
                raise _unreadable(path, 1, "its columns are not those of `charging move --out`")
            rows = [_listed(path, reader.line_num, cells) for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        message = f"{path} cannot be read ({error}): write it again with `charging move --out`"
        raise ChargingFileError(message) from None
    if len(rows) > MAX_CHARGING_ROWS or len({row.org_id for row in rows}) < len(rows):
        raise _unreadable(path, len(rows), "an organization comes twice, or it has too many rows")
    if len({row.to for row in rows}) > 1:
        raise _unreadable(path, len(rows), "its rows move to different providers")
    return rows


def _cells(move: ChargingMove, to: Provider) -> tuple[object, ...]:
    return (
        move.org_id,
        move.name,
        move.version,
        move.tier,
        move.amount,
        move.currency,
        move.interval,
        move.charged_by,
        to,
        move.customer_id,
        move.subscription_id,
        move.payer_id,
        LOST[move.charged_by],
        move.reason,
    )


def _listed(path: Path, line: int, cells: dict[str, str]) -> ListedMove:
    if None in cells or None in cells.values():
        raise _unreadable(path, line, "it has more or fewer cells than the first line")
    texts = {name: cell.removeprefix("'") for name, cell in cells.items()}
    to = next((provider for provider in PROVIDERS if provider == texts["move_to"]), None)
    if to is None or not texts["version"].isdecimal() or not texts["org_id"]:
        raise _unreadable(path, line, "the organization, its version or where it moves cannot be read")
    return ListedMove(
        org_id=texts["org_id"],
        version=int(texts["version"]),
        tier=texts["tier"],
        subscription_id=texts["subscription_id"] or None,
        payer_id=texts["payer_id"] or None,
        to=to,
    )


def _guarded(cell: object) -> str:
    text = "" if cell is None else str(cell).replace("\0", "�")
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def _unreadable(path: Path, line: int, problem: str) -> ChargingFileError:
    return ChargingFileError(f"{path} line {line}: {problem}; write it again with `billing-sync charging move --out`")
