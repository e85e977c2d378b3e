"""Exit codes and error messages. Every expected error becomes one sentence that says what to do.

Any other exception is a bug and shows its traceback. No sentence contains a secret: errors of settings and databases
have no values in them.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence

import typer
from kombu.exceptions import OperationalError as BrokerError
from sqlalchemy.exc import DBAPIError
from typer.core import TyperGroup
from typer.main import get_command

from core.catalog.plans import CatalogError
from core.db.database import DatabaseError
from core.ports.errors import ProviderError
from core.predecessor.files import UnreadableFileError, UnwritableFileError
from core.predecessor.importing import ImportInterruptedError
from core.reconcile.account_guard import WrongAccountError
from sandbox.client import SandboxError
from worker.config.settings import SettingsError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class UsageError(Exception):
    """The command as typed cannot be run; the message says what can."""


class CommandFailedError(Exception):
    """The command ran and failed; the message says what to do."""


# Wrong arguments, settings and files. The error's own message is shown.
_USAGE_ERRORS = (
    UsageError,
    SettingsError,
    CatalogError,
    DatabaseError,
    UnreadableFileError,
    UnwritableFileError,
    WrongAccountError,
)
# Work that ran and failed.
_FAILURES = (CommandFailedError, ProviderError, SandboxError, ImportInterruptedError)
EXPECTED_ERRORS = (*_USAGE_ERRORS, *_FAILURES, BrokerError, DBAPIError, OSError, typer.TyperException)


def run(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code."""
    try:
        code = app(list(arguments), prog_name="billing-sync", standalone_mode=False)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except typer.Abort:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        # The output was piped into `head`. Without this, Python reports the closed pipe again at exit.
        sys.stdout = None
        code = EXIT_FAILED
    except EXPECTED_ERRORS as error:
        outcome = _message_and_code(error, _command_name(app, arguments))
        if outcome is None:
            raise
        message, code = outcome
        if message:
            print_error(message)
    return code if isinstance(code, int) else 0


def print_error(message: str) -> None:
    """One sentence to standard error."""
    sys.stderr.write(f"billing-sync: {message}\n")
    sys.stderr.flush()


def _message_and_code(error: Exception, command: str) -> tuple[str, int] | None:
    """The message and the exit code; ``None`` if this error is not an expected one."""
    match error:
        case BrokerError():
            return (
                "the broker does not respond; check REDIS_URL or CELERY_BROKER_URL and that it is running",
                EXIT_FAILED,
            )
        case DBAPIError():
            return (
                f"the database failed: {_first_line(error.orig)}; check DATABASE_URL and that it is running",
                EXIT_FAILED,
            )
        case OSError():
            return _os_error_message(error, command)
        case typer.TyperException():
            return _usage_message(error.format_message(), command), EXIT_USAGE
    return str(error), EXIT_USAGE if isinstance(error, _USAGE_ERRORS) else EXIT_FAILED


def _os_error_message(error: OSError, command: str) -> tuple[str, int] | None:
    path_prefix = f"{error.filename}: " if error.filename else ""
    match error.errno:
        case errno.EADDRINUSE:
            # `up` has no --port; its port is only a setting.
            port_setting = "in API_PORT" if command == "billing-sync up" else "with --port"
            return f"that port is in use: choose another {port_setting}; 0 picks a free one", EXIT_USAGE
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return (
                f"{path_prefix}permission denied; choose another folder (DATA_DIR) or grant this user access",
                EXIT_USAGE,
            )
        case errno.ENOENT | errno.ENOTDIR | errno.EISDIR | errno.EEXIST:
            return f"{path_prefix}{error.strerror}; give a valid path", EXIT_USAGE
        case errno.ENOSPC:
            return f"{path_prefix}the disk is full; free some space and run it again", EXIT_FAILED
    return None


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


def _first_line(error: object) -> str:
    return (str(error).splitlines() or ["no response"])[0]
