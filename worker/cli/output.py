"""How answers look: tables for people, JSON for programs. Names of JSON fields and times (ISO, UTC) stay as they are.

A cell is text, never markup: whatever an organization is called, it is shown as it is. Where a table is too wide, ids
are shortened, all by as much, and nothing else; a pipe gets them whole.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from datetime import UTC, datetime
from typing import Annotated, Generic, Literal, TypeVar

import typer
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

Row = TypeVar("Row")

Limit = Annotated[int, typer.Option(min=1, max=10_000, help="Show at most so many.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

PIPE_WIDTH = 250
SHORTEST_ID = 11  # beneath it, what may fold does
NOTHING = "-"


@dataclass(frozen=True, slots=True)
class Column(Generic[Row]):
    """``id``: shortened where there is no room; ``fold``: broken into lines there; else always whole."""

    title: str
    cell: Callable[[Row], str | Text | None]
    kind: Literal["whole", "id", "fold"] = "whole"
    most: int | None = None
    justify: Literal["left", "right"] = "left"


def console() -> Console:
    """Standard output as it is now; made at each use, since tests and pipes replace it."""
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(highlight=False, width=PIPE_WIDTH if piped else None)


def notes() -> Console:
    """Standard error: progress and remarks, so that a pipe gets the result alone."""
    return Console(stderr=True, highlight=False)


def table(rows: Sequence[Row], columns: Sequence[Column[Row]]) -> Table:
    width = console().width
    gap = 2 if width >= 100 else 1  # noqa: PLR2004 - a wide screen
    made = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    cells = [[_text(column.cell(row)) for row in rows] for column in columns]
    room = _room_for_ids(columns, cells, width - gap * (len(columns) - 1))
    for column, texts in zip(columns, cells, strict=True):
        if column.kind == "id":
            texts[:] = [_shortened(text, room) for text in texts]
        folds = column.kind == "fold"
        made.add_column(column.title, no_wrap=not folds, overflow="fold", max_width=column.most, justify=column.justify)
    for row in zip(*cells, strict=True):
        made.add_row(*row)
    return made


def show(*parts: RenderableType) -> None:
    """Print each part on lines of its own; a string is text, not markup."""
    out = console()
    for part in parts:
        out.print(Text(part) if isinstance(part, str) else part)


def show_json(document: Mapping[str, object]) -> None:
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False, default=_plain))


def how_many(shown: int, total: int) -> str:
    return f"{shown} of {total}; --limit shows more" if shown < total else f"{total} in all"


def age(moment: datetime | None, now: datetime) -> str:
    """``3 min ago``, ``in 12 s``; a dash where there is no moment."""
    if moment is None:
        return NOTHING
    seconds = (now - moment).total_seconds()
    return f"{_span(seconds)} ago" if seconds >= 0 else f"in {_span(-seconds)}"


def clock_time(moment: datetime) -> str:
    """A moment as people write it, in UTC."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _span(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"


def _text(cell: str | Text | None) -> Text:
    return cell if isinstance(cell, Text) else Text(cell or NOTHING)


def _room_for_ids(columns: Sequence[Column[Row]], cells: Sequence[Sequence[Text]], width: int) -> int:
    """Characters that each id may take once everything else is shown."""
    ids = sum(column.kind == "id" for column in columns)
    taken = 0
    for column, texts in zip(columns, cells, strict=True):
        if column.kind != "id":
            widest = max(_widest(texts), _widest([Text(column.title)]))
            taken += min(widest, column.most or widest)
    return max(SHORTEST_ID, (width - taken) // ids) if ids else 0


def _widest(texts: Sequence[Text]) -> int:
    return max((cell_len(line) for text in texts for line in text.plain.split("\n")), default=1)


def _shortened(text: Text, room: int) -> Text:
    return text if len(text) <= room else Text(text.plain[: room - 1] + "…")


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    message = f"{type(value).__name__} has no form in JSON"
    raise TypeError(message)
