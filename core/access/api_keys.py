"""API keys of service accounts, with scopes. A key is shown once, when it is created; only its hash is stored.

A key has 256 random bits, so one fast hash is enough: it cannot be guessed, and a slow hash would add no protection.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, get_args

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.common.validation import InvalidChangeError, one_of
from core.db.models.access import ApiKey

Scope = Literal[
    "organizations:read", "organizations:write", "billing:write", "events:write", "webhooks:write", "metrics:read"
]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)

API_KEY_PREFIX: Final = "bsk_"
MAX_API_KEY_NAME_LENGTH: Final = 100
_API_KEY_PATTERN = re.compile(rf"{API_KEY_PREFIX}([0-9a-f]{{16}})_([A-Za-z0-9_-]{{43}})")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceAccount:
    """Another program that authenticated with its API key. ``id`` may be shown and logged; it grants no access."""

    id: str
    name: str
    scopes: frozenset[Scope]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyInfo:
    id: str
    name: str
    scopes: list[Scope]
    created_at: datetime
    revoked_at: datetime | None


def create(session: Session, name: str, scopes: Collection[str], now: datetime) -> tuple[ApiKeyInfo, str]:
    """Creates a key. Returns its description and the key itself, this one time. Raises ``InvalidChangeError``."""
    stripped_name = name.strip()
    if not stripped_name or len(stripped_name) > MAX_API_KEY_NAME_LENGTH or not stripped_name.isprintable():
        raise InvalidChangeError("name", f"name must be one line of 1 to {MAX_API_KEY_NAME_LENGTH} characters")
    if not scopes:
        raise InvalidChangeError("scopes", f"scopes must name at least one of {', '.join(SCOPES)}")
    checked = sorted({one_of("scope", scope, SCOPES) for scope in scopes})
    key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    row = ApiKey(id=key_id, name=stripped_name, secret_hash=_hash(secret), scopes=" ".join(checked), created_at=now)
    session.add(row)
    session.flush()
    return _to_info(row), f"{API_KEY_PREFIX}{key_id}_{secret}"


def find(session: Session, api_key: str) -> ServiceAccount | None:
    """The service account of this key; ``None``: the key is unknown or revoked."""
    match = _API_KEY_PATTERN.fullmatch(api_key)
    row = session.get(ApiKey, match[1]) if match else None
    if match is None or row is None or row.revoked_at is not None:
        return None
    if not hmac.compare_digest(row.secret_hash, _hash(match[2])):
        return None
    return _to_account(row)


def lock(session: Session, key_id: str) -> ServiceAccount | None:
    """As ``find``, of a key that was found before. A revocation then waits for the end of the transaction."""
    row = session.get(ApiKey, key_id, with_for_update={"read": True})
    return _to_account(row) if row is not None and row.revoked_at is None else None


def list_all(session: Session) -> list[ApiKeyInfo]:
    """All keys, revoked ones included, oldest first."""
    return [_to_info(row) for row in session.scalars(select(ApiKey).order_by(ApiKey.created_at, ApiKey.id))]


def revoke(session: Session, key_id: str, now: datetime) -> bool:
    """Revokes the key as of the commit. False: there is no such key. Safe to repeat."""
    row = session.get(ApiKey, key_id, with_for_update=True)
    if row is not None and row.revoked_at is None:
        row.revoked_at = now
    return row is not None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _to_account(row: ApiKey) -> ServiceAccount:
    return ServiceAccount(id=row.id, name=row.name, scopes=frozenset(_scopes(row)))


def _to_info(row: ApiKey) -> ApiKeyInfo:
    return ApiKeyInfo(
        id=row.id, name=row.name, scopes=_scopes(row), created_at=row.created_at, revoked_at=row.revoked_at
    )


def _scopes(row: ApiKey) -> list[Scope]:
    """The key's scopes. Unknown scopes grant no access."""
    granted = set(row.scopes.split())
    return [scope for scope in SCOPES if scope in granted]
