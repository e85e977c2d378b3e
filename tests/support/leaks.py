"""Search of everything that a run wrote for keys and passwords, and for names and emails outside their own columns.

Names are allowed in the columns of ``PLACES_FOR_NAMES`` only, so a new log, table or column is searched automatically.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import redis as redis_client
from sqlalchemy import MetaData, create_engine, select

SECRETS: Final = (
    "STRIPE_SECRET_KEY",
    "LAGO_API_KEY",
    "STRIPE_WEBHOOK_SECRET",
    "LAGO_WEBHOOK_SECRET",
    "WEBHOOK_SIGNING_SECRET",
    "SMTP_PASSWORD",
    "FLOWER_BASIC_AUTH",
)
ADDRESSES: Final = ("DATABASE_URL", "DATABASE_DIRECT_URL", "CELERY_BROKER_URL", "REDIS_URL")

# Columns for names and emails: the rows themselves, the data of service events, and the body of an open create request.
PLACES_FOR_NAMES: Final = {
    ("organizations", "name"),
    ("organizations", "name_key"),
    ("organizations", "billing_email"),
    ("service_events", "data"),
    ("billing_links", "intent"),
    ("users", "name"),
    ("users", "email"),
    ("invitations", "email"),
    ("invitations", "recipient_key"),
    ("emails", "recipient"),
}
SHORTEST_NAME = 4  # letters; a shorter one occurs in any text

Written = Iterable[tuple[str, str]]
"""Pairs of a place and the text in it."""


def secrets_of(environment: Mapping[str, str]) -> set[str]:
    """The keys and passwords in the settings, which may not occur anywhere else."""
    keys = {environment[name] for name in SECRETS if environment.get(name)}
    return keys | {password for name in ADDRESSES for password in _passwords(environment.get(name, ""))}


def _passwords(address: str) -> set[str]:
    parts = urlsplit(address)
    if not parts.password:
        return set()
    # "guest" alone is a common word, so it is only searched together with its user name.
    shown = {parts.password, unquote(parts.password)}
    return {f"{parts.username}:{password}" for password in shown} if parts.username == parts.password else shown


def found(written: Written, forbidden: Iterable[str]) -> list[str]:
    """The places of forbidden words with the words, each once."""
    words = {form for word in forbidden for form in (word, json.dumps(word)[1:-1])}
    return sorted({f"{place}: {word}" for place, text in written for word in words if word in text})


def names(database_url: str) -> set[str]:
    """The names and emails that the run used."""
    columns = {
        ("organizations", "name"),
        ("organizations", "billing_email"),
        ("service_events", "data"),
        ("users", "email"),
        ("emails", "recipient"),
    }
    used: set[str] = set()
    for place, value in _cells(database_url):
        if place not in columns:
            continue
        if isinstance(value, Mapping):
            used |= {str(value[field]) for field in ("name", "billing_email") if value.get(field)}
        else:
            used.add(str(value))
    return {name for name in used if len(name) >= SHORTEST_NAME}


def rows(database_url: str, *, with_names: bool) -> Written:
    """Each cell of each table; with ``with_names=False``, without the columns for names."""
    for (table, column), value in _cells(database_url):
        if with_names or (table, column) not in PLACES_FOR_NAMES:
            text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
            yield f"{table}.{column}", text


def _cells(database_url: str) -> Iterator[tuple[tuple[str, str], Any]]:
    plain = database_url.replace("postgresql://", "postgresql+psycopg://")
    engine = create_engine(plain)
    try:
        metadata = MetaData()
        metadata.reflect(engine)
        with engine.connect() as connection:
            for table in metadata.sorted_tables:
                for row in connection.execute(select(table)).mappings():
                    yield from (((table.name, name), value) for name, value in row.items() if value is not None)
    finally:
        engine.dispose()


def files(folder: Path, pattern: str) -> Written:
    return [
        (path.name, path.read_bytes().decode(errors="replace"))
        for path in sorted(folder.rglob(pattern))
        if path.is_file()
    ]


def stored_results(broker_url: str) -> list[str]:
    """Stored results of tasks. Nothing reads them, so there must be none."""
    if not broker_url.startswith("redis"):
        return []
    with redis_client.Redis.from_url(broker_url) as client:
        return [str(key) for key in client.scan_iter("celery-task-meta*")]
