"""Who may send from a source: over HTTP the service account that owns it, on the queue whoever the operator allows.

The queue knows no sender: whoever reaches the broker may send. So a message there has no account, and a source that an
account owns may be sent from on the queue, too, if it is allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy.orm import Session

from core.inbox import event_sources

SOURCE_NOT_ALLOWED: Final = "source: this source is not in the setting EVENT_SOURCES_ALLOWED of the workers"
SOURCE_OF_ANOTHER_ACCOUNT: Final = "source: this source belongs to another service account"


@dataclass(frozen=True, slots=True, kw_only=True)
class SenderAccount:
    """The service account that sends and the key that it uses, as the transaction that stores the message sees them."""

    account_id: str
    key_id: str


ConfirmSender = Callable[[Session], SenderAccount]
"""Raises if the sender may not send messages any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """``reason`` None: the message may be handled. ``is_foreign``: nothing is stored, since the source is another's."""

    key_id: str | None = None
    reason: str | None = None
    is_foreign: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSender:
    """Somebody who reaches the queue. ``allowed_sources`` None: every source is allowed."""

    allowed_sources: frozenset[str] | None = None

    def admit(self, session: Session, source: str | None, now: datetime) -> Admission:  # noqa: ARG002 - as AccountSender
        """``source`` None: the message names none, and is invalid anyway."""
        if source is None or self.allowed_sources is None or source in self.allowed_sources:
            return Admission()
        return Admission(reason=SOURCE_NOT_ALLOWED)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountSender:
    """A service account that sends over HTTP. The first message from a source makes the source its own."""

    confirm: ConfirmSender

    def admit(self, session: Session, source: str | None, now: datetime) -> Admission:
        account = self.confirm(session)
        if source is None or event_sources.owner(session, source, account.account_id, now) == account.account_id:
            return Admission(key_id=account.key_id)
        return Admission(reason=SOURCE_OF_ANOTHER_ACCOUNT, is_foreign=True)


EventSender = QueueSender | AccountSender
ANYBODY_ON_THE_QUEUE: Final = QueueSender()
