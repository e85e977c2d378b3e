"""Output of the commands: tables for operators, JSON for programs. JSON field names and the time format are stable.

A cell is text and never markup, so any name of an organization is shown unchanged, but for characters that control a
terminal: these are shown as their codes. If a table is too wide, only ids
are shortened, all to the same width. In a pipe they are never shortened.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from datetime import UTC, datetime
from typing import Annotated, Final, Generic, Literal, TypeVar

import typer
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderHook, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from worker.cli.visible_text import visible, visible_json

TableRow = TypeVar("TableRow")

LimitOption = Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number to show.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

PIPE_WIDTH = 250
MIN_ID_WIDTH = 11  # below this width the columns of kind ``fold`` wrap
EMPTY_CELL = "-"


class _VisibleOutput(RenderHook):
    """Holds for everything that a console prints, whoever made it."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_VisibleRenderable(each) for each in renderables]


class _VisibleRenderable:
    def __init__(self, inner: ConsoleRenderable) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rendered: Iterable[Segment] = console.render(self._inner, options)
        for segment in rendered:
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


@dataclass(frozen=True, slots=True)
class Column(Generic[TableRow]):
    """A narrow table shortens cells of kind ``id`` and wraps those of kind ``fold``; others stay whole."""

    title: str
    cell: Callable[[TableRow], str | Text | None]
    kind: Literal["whole", "id", "fold"] = "whole"
    max_width: int | None = None
    justify: Literal["left", "right"] = "left"


def stdout_console() -> Console:
    """A console on the current standard output; created at each use, because tests and pipes replace it."""
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return _visible_console(Console(highlight=False, width=PIPE_WIDTH if piped else None))


def stderr_console() -> Console:
    """A console on standard error, for progress and remarks, so that a pipe gets only the result."""
    return _visible_console(Console(stderr=True, highlight=False))


def table(rows: Sequence[TableRow], columns: Sequence[Column[TableRow]]) -> Table:
    width = stdout_console().width
    gap = 2 if width >= 100 else 1  # noqa: PLR2004 - a wide terminal
    grid = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    cells = [[_cell_text(column.cell(row)) for row in rows] for column in columns]
    id_width = _id_width(columns, cells, width - gap * (len(columns) - 1))
    for column, texts in zip(columns, cells, strict=True):
        if column.kind == "id":
            texts[:] = [_shorten(text, id_width) for text in texts]
        folds = column.kind == "fold"
        grid.add_column(
            column.title, no_wrap=not folds, overflow="fold", max_width=column.max_width, justify=column.justify
        )
    for row in zip(*cells, strict=True):
        grid.add_row(*row)
    return grid


def show(*parts: RenderableType) -> None:
    """Print each part on its own lines. A string is text, not markup."""
    out = stdout_console()
    for part in parts:
        out.print(Text(visible(part)) if isinstance(part, str) else part)


_LINE_END: Final = "\n"
_JSON_END: Final = "\n}"


def show_json(document: Mapping[str, object]) -> None:
    typer.echo(json_text(document, indent=2))


def show_json_rows(
    head: Mapping[str, object], name: str, rows: Iterable[object], tail: Callable[[], Mapping[str, object]]
) -> None:
    """One document, written row by row: ``head``, the list ``name``, and ``tail``, which is known after the rows."""
    typer.echo(f"{json_text(head, indent=2).removesuffix(_JSON_END)},\n  {json.dumps(name)}: [", nl=False)
    separator = ""
    for row in rows:
        # Only the layout has line ends: those of a text are escaped.
        text = visible_json(json.dumps(row, indent=2, ensure_ascii=False, default=_json_default))
        typer.echo(f"{separator}\n    {text.replace(_LINE_END, _LINE_END + '    ')}", nl=False)
        separator = ","
    closed = f"{_LINE_END}  ]" if separator else "]"
    typer.echo(f"{closed},{json_text(tail(), indent=2).removeprefix('{')}")


def json_text(document: Mapping[str, object], *, indent: int | None = None) -> str:
    return visible_json(json.dumps(document, indent=indent, ensure_ascii=False, default=_json_default))


def count_line(shown: int, total: int) -> str:
    return f"{shown} of {total}; --limit shows more" if shown < total else f"{total} in all"


def relative_time(moment: datetime | None, now: datetime) -> str:
    """``3 min ago`` or ``in 12 s``; a dash for ``None``."""
    if moment is None:
        return EMPTY_CELL
    seconds = (now - moment).total_seconds()
    return f"{_duration(seconds)} ago" if seconds >= 0 else f"in {_duration(-seconds)}"


def utc_time(moment: datetime) -> str:
    """A moment as readable text, in UTC."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _visible_console(console: Console) -> Console:
    console.push_render_hook(_VisibleOutput())
    return console


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"


def _cell_text(cell: str | Text | None) -> Text:
    return cell if isinstance(cell, Text) else Text(visible(cell or EMPTY_CELL))


def _id_width(columns: Sequence[Column[TableRow]], cells: Sequence[Sequence[Text]], width: int) -> int:
    """The width that is left for each id after all other columns."""
    ids = sum(column.kind == "id" for column in columns)
    used = 0
    for column, texts in zip(columns, cells, strict=True):
        if column.kind != "id":
            widest = max(_widest(texts), _widest([Text(column.title)]))
            used += min(widest, column.max_width or widest)
    return max(MIN_ID_WIDTH, (width - used) // ids) if ids else 0


def _widest(texts: Sequence[Text]) -> int:
    return max((cell_len(line) for text in texts for line in text.plain.split("\n")), default=1)


def _shorten(text: Text, width: int) -> Text:
    return text if len(text) <= width else Text(text.plain[: width - 1] + "…")


def _json_default(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    message = f"{type(value).__name__} cannot be written as JSON"
    raise TypeError(message)
