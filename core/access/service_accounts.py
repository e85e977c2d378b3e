"""Service accounts: other programs that call us. An account has one or several API keys; ``api_keys`` makes them."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.common.validation import InvalidChangeError
from core.db.models.access import ServiceAccount

MAX_SERVICE_NAME_LENGTH: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountInfo:
    """``name`` is for humans, and several accounts may have the same."""

    id: str
    name: str


def create(session: Session, name: str, now: datetime) -> ServiceAccount:
    """Raises ``InvalidChangeError``."""
    account = ServiceAccount(id=secrets.token_hex(8), name=checked_name(name), created_at=now)
    session.add(account)
    session.flush()
    return account


def find(session: Session, account_id: str) -> ServiceAccount:
    """Raises ``InvalidChangeError`` if there is no such account."""
    account = session.get(ServiceAccount, account_id)
    if account is None:
        raise InvalidChangeError("account", "there is no such service account")
    return account


def list_all(session: Session) -> list[AccountInfo]:
    """Oldest first."""
    accounts = session.scalars(select(ServiceAccount).order_by(ServiceAccount.created_at, ServiceAccount.id))
    return [AccountInfo(id=row.id, name=row.name) for row in accounts]


def checked_name(name: str) -> str:
    """The name of an account or of a key. Raises ``InvalidChangeError``."""
    stripped = name.strip()
    if not stripped or len(stripped) > MAX_SERVICE_NAME_LENGTH or not stripped.isprintable():
        raise InvalidChangeError("name", f"name must be one line of 1 to {MAX_SERVICE_NAME_LENGTH} characters")
    return stripped
