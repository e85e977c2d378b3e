"""Mails as files, for whoever tries the system without a mail server: open them with any mail program.

A mail that is sent again replaces its file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from pathlib import Path

from core.emails.sender import EmailServerUnavailableError


class EmailFolder:
    """Its own line, too."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def connect(self) -> Iterator[EmailFolder]:
        yield self

    def send(self, message: EmailMessage) -> None:
        """Raises ``EmailServerUnavailableError`` where the folder cannot be written to."""
        name = str(message["Message-ID"]).strip("<>").split("@")[0]
        partial = self._folder / f"{name}.part"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            partial.write_bytes(message.as_bytes())
            partial.replace(self._folder / f"{name}.eml")
        except OSError as error:
            reason = f"the folder of mails cannot be written to ({type(error).__name__})"
            raise EmailServerUnavailableError(reason) from None
