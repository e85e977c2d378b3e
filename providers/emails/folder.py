"""Mails as files, for whoever tries the system without a mail server: open them with any mail program.

A mail that is sent again replaces its file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from pathlib import Path

from core.emails.sender import MailServerAwayError


class MailFolder:
    """Its own line, too."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def line(self) -> Iterator[MailFolder]:
        yield self

    def send(self, message: EmailMessage) -> None:
        """Raises ``MailServerAwayError`` where the folder cannot be written to."""
        name = str(message["Message-ID"]).strip("<>").split("@")[0]
        made = self._folder / f"{name}.part"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            made.write_bytes(message.as_bytes())
            made.replace(self._folder / f"{name}.eml")
        except OSError as error:
            reason = f"the folder of mails cannot be written to ({type(error).__name__})"
            raise MailServerAwayError(reason) from None
