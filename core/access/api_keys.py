"""API keys of service accounts, with scopes. A key is shown once, when it is created; only its hash is stored.

A key has 256 random bits, so one fast hash is enough: it cannot be guessed, and a slow hash would add no protection.
An account may have several keys, so that a new key is in use before the old one is revoked or expires.
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

from core.access import service_accounts
from core.common.validation import InvalidChangeError, one_of
from core.db.database import acquire_advisory_locks
from core.db.models.access import ApiKey, ServiceAccount

Scope = Literal[
    "organizations:read", "organizations:write", "billing:write", "events:write", "webhooks:write", "metrics:read"
]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)

API_KEY_PREFIX: Final = "bsk_"
_API_KEY_PATTERN = re.compile(rf"{API_KEY_PREFIX}([0-9a-f]{{16}})_([A-Za-z0-9_-]{{43}})")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceCaller:
    """A service account that authenticated with one of its keys. The ids may be shown and logged; they grant no access.

    ``scopes`` are those of the key.
    """

    account_id: str
    account_name: str
    key_id: str
    scopes: frozenset[Scope]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyInfo:
    id: str
    name: str
    scopes: list[Scope]
    created_at: datetime
    revoked_at: datetime | None
    expires_at: datetime | None
    account_id: str
    account_name: str


def create(  # noqa: PLR0913 - what a key has
    session: Session,
    name: str,
    scopes: Collection[str],
    now: datetime,
    *,
    account_id: str | None = None,
    expires_at: datetime | None = None,
) -> tuple[ApiKeyInfo, str]:
    """Creates a key. Returns its description and the key itself, this one time. Raises ``InvalidChangeError``.

    ``account_id`` None: of a new account, which gets the name of the key.
    """
    checked_name = service_accounts.checked_name(name)
    if not scopes:
        raise InvalidChangeError("scopes", f"scopes must name at least one of {', '.join(SCOPES)}")
    checked = sorted({one_of("scope", scope, SCOPES) for scope in scopes})
    key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    account = (
        service_accounts.create(session, name, now)
        if account_id is None
        else service_accounts.find(session, account_id)
    )
    row = ApiKey(
        id=key_id,
        name=checked_name,
        secret_hash=_hash(secret),
        scopes=" ".join(checked),
        created_at=now,
        account_id=account.id,
        expires_at=expires_at,
    )
    session.add(row)
    session.flush()
    return _to_info(row, account.name), f"{API_KEY_PREFIX}{key_id}_{secret}"


def find(session: Session, api_key: str, now: datetime) -> ServiceCaller | None:
    """The service account of this key; ``None``: the key is unknown or revoked, or it has expired."""
    match = _API_KEY_PATTERN.fullmatch(api_key)
    row = session.get(ApiKey, match[1]) if match else None
    if match is None or row is None or not _is_valid(row, now):
        return None
    if not hmac.compare_digest(row.secret_hash, _hash(match[2])):
        return None
    return _to_caller(session, row)


def lock(session: Session, key_id: str, now: datetime) -> ServiceCaller | None:
    """As ``find``, of a key that was found before. A revocation then waits for the end of the transaction."""
    acquire_advisory_locks(session, _lock_name(key_id), shared=True)
    row = session.get(ApiKey, key_id, populate_existing=True)
    return _to_caller(session, row) if row is not None and _is_valid(row, now) else None


def list_all(session: Session) -> list[ApiKeyInfo]:
    """All keys, revoked ones included, oldest first."""
    rows = session.execute(
        select(ApiKey, ServiceAccount.name)
        .join(ServiceAccount, ServiceAccount.id == ApiKey.account_id)
        .order_by(ApiKey.created_at, ApiKey.id)
    )
    return [_to_info(row, account_name) for row, account_name in rows]


def revoke(session: Session, key_id: str, now: datetime) -> bool:
    """Revokes the key as of the commit. False: there is no such key. Safe to repeat.

    It waits for the transactions that use the key now, and for none that begins later.
    """
    acquire_advisory_locks(session, _lock_name(key_id))
    row = session.get(ApiKey, key_id, populate_existing=True)
    if row is not None and row.revoked_at is None:
        row.revoked_at = now
    return row is not None


def _lock_name(key_id: str) -> str:
    return f"api_key:{key_id}"


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _is_valid(row: ApiKey, now: datetime) -> bool:
    return row.revoked_at is None and (row.expires_at is None or now < row.expires_at)


def _to_caller(session: Session, row: ApiKey) -> ServiceCaller:
    account = session.get_one(ServiceAccount, row.account_id)
    return ServiceCaller(
        account_id=account.id, account_name=account.name, key_id=row.id, scopes=frozenset(_scopes(row))
    )


def _to_info(row: ApiKey, account_name: str) -> ApiKeyInfo:
    return ApiKeyInfo(
        id=row.id,
        name=row.name,
        scopes=_scopes(row),
        created_at=row.created_at,
        revoked_at=row.revoked_at,
        expires_at=row.expires_at,
        account_id=row.account_id,
        account_name=account_name,
    )


def _scopes(row: ApiKey) -> list[Scope]:
    """The key's scopes. Unknown scopes grant no access."""
    granted = set(row.scopes.split())
    return [scope for scope in SCOPES if scope in granted]
