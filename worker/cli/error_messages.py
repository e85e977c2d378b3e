"""The sentence and the exit code for each error that can be expected of the core, the settings and the libraries.

No sentence contains a secret: errors of settings and databases have no values in them.
"""

from __future__ import annotations

import errno
import socket

from kombu.exceptions import OperationalError as BrokerError
from sqlalchemy.exc import DBAPIError

from core.catalog.plans import CatalogError
from core.common import tls_failures
from core.db import postgres_sessions
from core.db.database import DatabaseError, is_read_only_error
from core.ports.errors import ProviderError
from core.predecessor.files import UnreadableFileError, UnwritableFileError
from core.predecessor.importing import ImportInterruptedError
from core.reconcile.account_guard import WrongAccountError
from sandbox.client import SandboxError
from worker.cli.exit_codes import EXIT_FAILED, EXIT_USAGE, CommandFailedError
from worker.config.settings import SettingsError

_ADDRESS_MESSAGE = (
    "the host is not an address of this machine: give --host (or API_HOST) one that is, such as 127.0.0.1 or 0.0.0.0"
)
# Wrong settings and files. The error's own message is shown.
_USAGE_ERRORS = (
    SettingsError,
    CatalogError,
    DatabaseError,
    UnreadableFileError,
    UnwritableFileError,
    WrongAccountError,
)
# Work that ran and failed.
_FAILURES = (CommandFailedError, ProviderError, SandboxError, ImportInterruptedError)
EXPECTED_ERRORS: tuple[type[Exception], ...] = (*_USAGE_ERRORS, *_FAILURES, BrokerError, DBAPIError, OSError)


def message_and_code(error: Exception, command: str) -> tuple[str, int] | None:
    """The message and the exit code; ``None`` if this error is not an expected one."""
    match error:
        case BrokerError():
            why = tls_failures.reason(error)
            problem = "the broker does not respond" if why is None else f"TLS with the broker fails: {why}"
            return f"{problem}; check REDIS_URL or CELERY_BROKER_URL and that it is running", EXIT_FAILED
        case DBAPIError() if is_read_only_error(error):
            return "the database is read-only, so nothing was stored; `billing-sync doctor` says more", EXIT_FAILED
        case DBAPIError() if (known := postgres_sessions.connection_problem(error.orig)) is not None:
            return str(known), EXIT_USAGE
        case DBAPIError():
            return (
                f"the database failed: {_first_line(error.orig)}; check DATABASE_URL and that it is running",
                EXIT_FAILED,
            )
        case OSError():
            return _os_error_message(error, command)
    return str(error), EXIT_USAGE if isinstance(error, _USAGE_ERRORS) else EXIT_FAILED


def _os_error_message(error: OSError, command: str) -> tuple[str, int] | None:
    path_prefix = f"{error.filename}: " if error.filename else ""
    match error.errno:
        case errno.EADDRINUSE:
            # `up` has no --port; its port is only a setting.
            port_setting = "in API_PORT" if command == "billing-sync up" else "with --port"
            return f"that port is in use: choose another {port_setting}; 0 picks a free one", EXIT_USAGE
        case errno.EADDRNOTAVAIL | socket.EAI_NONAME | socket.EAI_NODATA | socket.EAI_AGAIN:
            return _ADDRESS_MESSAGE, EXIT_USAGE
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


def _first_line(error: object) -> str:
    return (str(error).splitlines() or ["no response"])[0]
