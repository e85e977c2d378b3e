"""Exit codes of the commands, and the errors that a command raises with its own sentence."""

EXIT_FAILED = 1
EXIT_USAGE = 2


class UsageError(Exception):
    """The command as typed cannot be run; the message says what can."""


class NoSuchOrganizationError(UsageError):
    """No organization has this id or name."""


class CommandFailedError(Exception):
    """The command ran and failed; the message says what to do."""
