"""Runs the command line that was typed. Every expected error becomes one sentence that says what to do.

Any other exception is a bug and shows its traceback. The errors of the libraries are in ``error_messages``, which is
imported when there is an error.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer
from typer.core import TyperGroup
from typer.main import get_command

from worker.cli.exit_codes import EXIT_FAILED, EXIT_USAGE, UsageError
from worker.cli.start_up import EXIT_INTERRUPTED
from worker.cli.visible_text import visible


def run(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code."""
    try:
        code = app(list(arguments), prog_name="billing-sync", standalone_mode=False)
    except SystemExit:  # shell completion ends so; without this clause, the last one would import what it names
        raise
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        # The output was piped into `head`. Without this, Python reports the closed pipe again at exit.
        sys.stdout = None
        code = EXIT_FAILED
    except typer.TyperException as error:
        code = EXIT_USAGE
        if message := _usage_message(error.format_message(), _command_name(app, arguments)):
            print_error(message)
    except UsageError as error:
        code = EXIT_USAGE
        print_error(str(error))
    except _expected_errors() as error:
        from worker.cli import error_messages

        outcome = error_messages.message_and_code(error, _command_name(app, arguments))
        if outcome is None:
            raise
        message, code = outcome
        print_error(message)
    return code if isinstance(code, int) else 0


def print_error(message: str) -> None:
    """One sentence to standard error."""
    sys.stderr.write(f"billing-sync: {visible(message)}\n")
    sys.stderr.flush()


def _expected_errors() -> tuple[type[Exception], ...]:
    """Called only when a command raised an error that is none of the above."""
    from worker.cli.error_messages import EXPECTED_ERRORS

    return EXPECTED_ERRORS


def _usage_message(message: str, command: str) -> str:
    """Typer's message, with the command to type. It is empty if Typer has already printed the help."""
    if not message or message.endswith("?"):
        return message
    return f"{message.rstrip('.').replace('Value error, ', '')}; `{command} --help` lists the commands and options"


def _command_name(app: typer.Typer, arguments: Sequence[str]) -> str:
    """The command that was typed, as far as it exists."""
    words, group = ["billing-sync"], get_command(app)
    for word in arguments:
        found = group.commands.get(word) if isinstance(group, TyperGroup) else None
        if found is None:
            break
        words, group = [*words, word], found
    return " ".join(words)
