"""Writes emails as files into a folder, to try the system without an SMTP server. Any mail program opens them.

An email that is sent again replaces its file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from pathlib import Path

from core.emails.sender import EmailServerUnavailableError


class EmailFolder:
    """A transport that is also its own connection."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def connect(self) -> Iterator[EmailFolder]:
        yield self

    def send(self, message: EmailMessage) -> None:
        """Raises ``EmailServerUnavailableError`` if the folder is not writable."""
        name = str(message["Message-ID"]).strip("<>").split("@")[0]
        partial = self._folder / f"{name}.part"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            partial.write_bytes(message.as_bytes())
            partial.replace(self._folder / f"{name}.eml")
        except OSError as error:
            reason = f"the email folder is not writable ({type(error).__name__})"
            raise EmailServerUnavailableError(reason) from None
