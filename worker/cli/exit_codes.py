"""Every failure that can be foreseen becomes one sentence with a way out; what is left is a bug and shows its trace.

No sentence repeats a secret: those of settings and databases are made without values.
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

FAILED = 1
WRONG = 2
INTERRUPTED = 130


class UsageError(Exception):
    """What was typed cannot be done; the message says what can."""


class FailedError(Exception):
    """The work was tried and did not succeed; the message says what to do."""


# Words, settings and files that a person can put right; the sentence is the error's own.
_WRONG = (
    UsageError,
    SettingsError,
    CatalogError,
    DatabaseError,
    UnreadableFileError,
    UnwritableFileError,
    WrongAccountError,
)
# Work that was tried.
_FAILED = (FailedError, ProviderError, SandboxError, ImportInterruptedError)
FORESEEN = (*_WRONG, *_FAILED, BrokerError, DBAPIError, OSError, typer.TyperException)


def run(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code."""
    try:
        code = app(list(arguments), prog_name="billing-sync", standalone_mode=False)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except typer.Abort:
        code = INTERRUPTED
    except BrokenPipeError:
        # Somebody piped the output into `head`; Python must not complain about it once more at exit.
        sys.stdout = None
        code = FAILED
    except FORESEEN as error:
        told = _told(error, _command(app, arguments))
        if told is None:
            raise
        sentence, code = told
        if sentence:
            say(sentence)
    return code if isinstance(code, int) else 0


def say(sentence: str) -> None:
    """One sentence to standard error."""
    sys.stderr.write(f"billing-sync: {sentence}\n")
    sys.stderr.flush()


def _told(error: Exception, command: str) -> tuple[str, int] | None:
    """The sentence and the exit code; ``None``: a kind of this error that nobody foresaw."""
    match error:
        case BrokerError():
            return "the broker does not answer; check REDIS_URL or CELERY_BROKER_URL and that it is running", FAILED
        case DBAPIError():
            return f"the database failed: {_first_line(error.orig)}; check DATABASE_URL and that it is running", FAILED
        case OSError():
            return _about_os(error, command)
        case typer.TyperException():
            return _about_words(error.format_message(), command), WRONG
    return str(error), WRONG if isinstance(error, _WRONG) else FAILED


def _about_os(error: OSError, command: str) -> tuple[str, int] | None:
    place = f"{error.filename}: " if error.filename else ""
    match error.errno:
        case errno.EADDRINUSE:
            # `up` has no --port: it is told by the setting alone.
            where = "in API_PORT" if command == "billing-sync up" else "with --port"
            return f"that port is taken: name another {where}; 0 takes a free one", WRONG
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"{place}not allowed here; choose another place (DATA_DIR) or give this user the right", WRONG
        case errno.ENOENT | errno.ENOTDIR | errno.EISDIR | errno.EEXIST:
            return f"{place}{error.strerror}; name a path that fits", WRONG
        case errno.ENOSPC:
            return f"{place}the disk is full; make room and run it again", FAILED
    return None


def _about_words(sentence: str, command: str) -> str:
    """What Typer says of the words typed; of none at all it says nothing, the help stands there already."""
    if not sentence or sentence.endswith("?"):
        return sentence
    return f"{sentence.rstrip('.').replace('Value error, ', '')}; `{command} --help` lists what there is"


def _command(app: typer.Typer, arguments: Sequence[str]) -> str:
    """As far as the words typed name one that there is."""
    words, at = ["billing-sync"], get_command(app)
    for word in arguments:
        found = at.commands.get(word) if isinstance(at, TyperGroup) else None
        if found is None:
            break
        words, at = [*words, word], found
    return " ".join(words)


def _first_line(error: object) -> str:
    return (str(error).splitlines() or ["no answer"])[0]
