"""Leases: the exclusive right to a row for a limited time, the same in every table that has them.

A lease always ends: the row is free again when its holder releases it or when ``lease_until`` has passed. Each holder
has a new token, and every write of a holder names it (``is_mine``). So whoever comes back after somebody else acquired
the row cannot write to it.

This module has the columns, conditions and values. How long a lease lasts and what else a row must meet is each owner's
own: statements stay there, and may be built once, because times and tokens may be bound parameters.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import ColumnElement, String, or_
from sqlalchemy.orm import Mapped, mapped_column


class Leased:
    """The two columns of a table whose rows are leased. Both are NULL in a row that was released."""

    lease_token: Mapped[str | None] = mapped_column(String(36))
    lease_until: Mapped[datetime | None]


RELEASED: Final[dict[str, Any]] = {"lease_token": None, "lease_until": None}
"""The values that release a lease. The statement also requires ``is_mine``, unless it may end anybody's lease."""


def new_token() -> str:
    return str(uuid4())


def acquired(token: str | ColumnElement[str], until: datetime | ColumnElement[datetime]) -> dict[str, Any]:
    """The values that acquire a lease. The statement also requires ``is_free``, or has locked a row that was free."""
    return {"lease_token": token, "lease_until": until}


def is_free(model: type[Leased], now: datetime | ColumnElement[datetime]) -> ColumnElement[bool]:
    """Nobody has the row: it was released, or the lease has ended. At ``lease_until`` itself it has not yet."""
    return or_(model.lease_until.is_(None), model.lease_until < now)


def is_mine(model: type[Leased], token: str | ColumnElement[str]) -> ColumnElement[bool]:
    """The holder of this token still has the row. A lease that has ended stays its own until somebody acquires it."""
    return model.lease_token == token
