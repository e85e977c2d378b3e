"""A command that changes something says first what it will do, and an operator at a terminal confirms it.

Without a terminal nobody can confirm, so a script has to say ``--yes``. No transaction is open meanwhile: the command
has to check afterwards that what it said still holds.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from typing import Annotated

import typer

from worker.cli import output
from worker.cli.exit_codes import CommandFailedError, UsageError

YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation; for scripts.")]


def confirm(lines: Sequence[str], *, yes: bool, on_stderr: bool = False) -> None:
    """Show what will be done, and return if it was confirmed. Raises ``CommandFailedError`` or ``UsageError``.

    ``on_stderr``: standard output is for JSON alone.
    """
    # All of it: where click asks on standard error, ``input`` still writes a space to standard output.
    with redirect_stdout(sys.stderr) if on_stderr else nullcontext():
        output.show(*lines)
        if yes:
            return
        if not sys.stdin.isatty():
            message = "nothing was changed, because nobody can confirm it without a terminal: add --yes"
            raise UsageError(message)
        if not typer.confirm("Do this?"):
            message = "nothing was changed"
            raise CommandFailedError(message)
