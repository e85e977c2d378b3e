"""What a run wrote, searched for what it may not write: keys and passwords at all, names and emails outside their rows.

Everything is searched that is not named as a place for names: a new log, table or column is searched unasked.
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
)
ADDRESSES: Final = ("DATABASE_URL", "CELERY_BROKER_URL", "REDIS_URL")

# Where names and emails belong: the rows themselves, what others sent, and the body of a create on its way.
PLACES_FOR_NAMES: Final = {
    ("organizations", "name"),
    ("organizations", "name_key"),
    ("organizations", "billing_email"),
    ("service_events", "data"),
    ("billing_links", "intent"),
    ("users", "name"),
    ("users", "email"),
    ("invitations", "email"),
    ("invitations", "email_key"),
    ("emails", "recipient"),
}
SHORTEST_NAME = 4  # letters; a shorter one is found in any text

Written = Iterable[tuple[str, str]]
"""Where it stands, and what stands there."""


def secrets_of(environment: Mapping[str, str]) -> set[str]:
    """What of the settings nobody may read anywhere else."""
    keys = {environment[name] for name in SECRETS if environment.get(name)}
    return keys | {password for name in ADDRESSES for password in _passwords(environment.get(name, ""))}


def _passwords(address: str) -> set[str]:
    parts = urlsplit(address)
    if not parts.password:
        return set()
    # "guest" is a word; with its owner before it, it is a password.
    shown = {parts.password, unquote(parts.password)}
    return {f"{parts.username}:{password}" for password in shown} if parts.username == parts.password else shown


def found(written: Written, forbidden: Iterable[str]) -> list[str]:
    """Where something forbidden stands, with what, each once."""
    words = {form for word in forbidden for form in (word, json.dumps(word)[1:-1])}
    return sorted({f"{place}: {word}" for place, text in written for word in words if word in text})


def names(database_url: str) -> set[str]:
    """The names and emails that the run had to do with."""
    wanted = {
        ("organizations", "name"),
        ("organizations", "billing_email"),
        ("service_events", "data"),
        ("users", "email"),
        ("emails", "recipient"),
    }
    known: set[str] = set()
    for place, value in _cells(database_url):
        if place not in wanted:
            continue
        if isinstance(value, Mapping):
            known |= {str(value[field]) for field in ("name", "billing_email") if value.get(field)}
        else:
            known.add(str(value))
    return {name for name in known if len(name) >= SHORTEST_NAME}


def rows(database_url: str, *, with_names: bool) -> Written:
    """Each cell of each table; without those that names belong into, where asked."""
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
    """Results of tasks: there is nobody to read them, so there may be none."""
    if not broker_url.startswith("redis"):
        return []
    with redis_client.Redis.from_url(broker_url) as client:
        return [str(key) for key in client.scan_iter("celery-task-meta*")]
