"""A cell of the adoption table as text that spreadsheets show, leave alone and give back.

A spreadsheet runs what begins like a formula, and rewrites what it takes for a number or a date. Such a text gets an
apostrophe before it, which is removed when it is read. Amounts are written with their currency, and times with UTC, so
that both stay text. What was changed all the same is found by digests of the cells (``row_check``).
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from core.ports.minor_units import amount_of, amount_text

CHECK_VERSION: Final = "v1"
_ROW_DIGEST_LENGTH: Final = 10
_CELL_DIGEST_LENGTH: Final = 2
_ROW_NAME_LENGTH: Final = 6
_FORMULA_STARTS: Final = tuple("=+-@\t\r\n'\uff1d\uff0b\uff0d\uff20")  # also in full width
_MONTH_NAMES: Final = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
# What a spreadsheet may take for a number, a date or a truth value.
_REWRITTEN: Final = re.compile(
    rf"[\s0-9.,:;/%$€£()eE+-]*[0-9][\s0-9.,:;/%$€£()eE+-]*|[0-9]*[\s./-]*(?:{_MONTH_NAMES})[a-z]*[\s./-]*[0-9]*|true|false",
    re.IGNORECASE,
)
_UNKNOWN_AMOUNT: Final = re.compile(r"\? ([A-Z]{3})")
_MOMENT_TEXT: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{6})? UTC")


def guarded(text: str) -> str:
    """The text as it is written. What UTF-8 cannot carry is replaced."""
    text = text.replace("\0", "�").encode("utf-8", "replace").decode("utf-8")
    return f"'{text}" if text.startswith(_FORMULA_STARTS) or _REWRITTEN.fullmatch(text) else text


def unguarded(cell: str) -> str:
    return cell.removeprefix("'")


def money_cell(amount: int | None, currency: str | None) -> str:
    """``49.00 USD``, or ``? USD`` for an amount that is not known."""
    if currency is None:
        return ""
    return f"? {currency}" if amount is None else amount_text(amount, currency)


def money_of(cell: str) -> tuple[int | None, str | None]:
    """Raises ``ValueError``."""
    if not cell:
        return None, None
    unknown = _UNKNOWN_AMOUNT.fullmatch(cell)
    if unknown is not None:
        return None, unknown[1]
    amount = amount_of(cell)
    if amount is None:
        raise ValueError(cell)
    return amount


def difference_cell(amount: int | None, currency: str | None) -> str:
    """``10.00 USD more``, ``10.00 USD less`` or ``0.00 USD``: without a sign, which would begin a formula."""
    if amount is None or currency is None:
        return ""
    word = " more" if amount > 0 else " less" if amount < 0 else ""
    return f"{amount_text(abs(amount), currency)}{word}"


def difference_of(cell: str) -> tuple[int | None, str | None]:
    """Raises ``ValueError``."""
    if not cell:
        return None, None
    sign = -1 if cell.endswith(" less") else 1
    amount = amount_of(cell.removesuffix(" less").removesuffix(" more"))
    if amount is None:
        raise ValueError(cell)
    return sign * amount[0], amount[1]


def moment_cell(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment.astimezone(UTC).replace(tzinfo=None).isoformat(sep=' ')} UTC"


def moment_of(cell: str) -> datetime | None:
    """Raises ``ValueError``."""
    if not cell:
        return None
    if not _MOMENT_TEXT.fullmatch(cell):
        raise ValueError(cell)
    return datetime.fromisoformat(cell.removesuffix(" UTC")).replace(tzinfo=UTC)


def whole_number_of(cell: str) -> int | None:
    """Raises ``ValueError``."""
    if not cell:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", cell):
        raise ValueError(cell)
    return int(cell)


def yes_or_no_cell(value: bool | None) -> str:  # noqa: FBT001 - the value of a cell
    return "" if value is None else "yes" if value else "no"


def yes_or_no_of(cell: str) -> bool | None:
    """Raises ``ValueError``."""
    if not cell:
        return None
    if cell not in {"yes", "no"}:
        raise ValueError(cell)
    return cell == "yes"


def row_check(texts: Mapping[str, str]) -> str:
    """Of the cells that nobody may change, by column: a digest of all, and a short one of each, which finds the cell.

    A spreadsheet may write the line ends in a cell anew, so those do not count.
    """
    whole = _digest("".join(f"{name}\0{_plain(text)}\0" for name, text in texts.items()), _ROW_DIGEST_LENGTH)
    cells = "".join(cell_digest(name, text) for name, text in texts.items())
    return f"{CHECK_VERSION}:{whole}:{cells}"


def row_name(check: str) -> str:
    """The first characters of the digest in a row's check: they say whose an operator's choices beside them are."""
    return check.split(":")[1][:_ROW_NAME_LENGTH]


def cell_digest(name: str, text: str) -> str:
    return _digest(f"{name}\0{_plain(text)}", _CELL_DIGEST_LENGTH)


def cell_digests(check: str, names: Sequence[str]) -> dict[str, str] | None:
    """The digest of each column in a row's check; None: it is no check of these columns."""
    parts = check.split(":")
    if len(parts) != len((CHECK_VERSION, "whole", "cells")) or parts[0] != CHECK_VERSION:
        return None
    digests = [parts[2][start : start + _CELL_DIGEST_LENGTH] for start in range(0, len(parts[2]), _CELL_DIGEST_LENGTH)]
    return dict(zip(names, digests, strict=True)) if len(digests) == len(names) else None


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _digest(text: str, length: int) -> str:
    digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
    return base64.b32encode(digest).decode("ascii").lower()[:length]
