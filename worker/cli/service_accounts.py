"""The service account that an operator names: by its id, the beginning of it, or its name if no other has the name."""

from __future__ import annotations

from sqlalchemy.orm import Session

from core.access import service_accounts
from worker.cli import descriptions


def whole_id(session: Session, given: str) -> str:
    """Raises ``UsageError``."""
    accounts = service_accounts.list_all(session)
    named = [each.id for each in accounts if each.name == given]
    if len(named) == 1:
        return named[0]
    return descriptions.whole_id(given, [each.id for each in accounts], "service account", "keys list")
