"""The progress bar of commands that read much. It is on standard error, and only if that is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from worker.cli import output

OnProgress = Callable[[str, int, int | None], None]
"""Called with the activity, how much of it is done, and the total; None: it is not known."""


@contextmanager
def progress_bar() -> Iterator[OnProgress]:
    console = output.stderr_console()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=None)
        yield lambda activity, done, total: bar.update(task, description=activity, completed=done, total=total)
