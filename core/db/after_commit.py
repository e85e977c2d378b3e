"""What is done once a transaction has committed, such as a log line about what it changed; nothing if it rolls back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sqlalchemy.orm import Session

_ACTIONS: Final = "after_commit"


def call(session: Session, action: Callable[[], object]) -> None:
    """Have ``Database.write`` call it after the commit. It must not raise: the change is made by then."""
    session.info.setdefault(_ACTIONS, []).append(action)


def run(session: Session) -> None:
    """Called by ``Database.write`` alone."""
    for action in session.info.pop(_ACTIONS, ()):
        action()
