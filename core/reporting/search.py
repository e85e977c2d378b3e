"""Find an organization by its id, the beginning of its id, or its name; else suggest close matches."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from core.db.models.organizations import Organization
from core.organizations.validation import name_key

SHORTEST_BEGINNING = 8  # "org_" and four more
CLOSE_AT_MOST = 5
NAMES_COMPARED = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    id: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """The one organization that a word means; else those that it may have meant, several where it is ambiguous."""

    found: Named | None
    close: list[Named]
    ambiguous: bool = False


def find(session: Session, word: str) -> Lookup:
    """By id, by name (as unique names are compared), or by the beginning of an id that no other id shares."""
    exact = session.get(Organization, word)
    if exact is not None:
        return Lookup(found=Named(id=exact.id, name=exact.name), close=[])
    named = _named(session, Organization.name_key == name_key(word), Organization.status != "deleted")
    named = named or _named(session, Organization.name_key == name_key(word))
    if not named and len(word) >= SHORTEST_BEGINNING and word.startswith("org_"):
        named = _named(session, Organization.id.startswith(word, autoescape=True))
    if len(named) == 1:
        return Lookup(found=named[0], close=[])
    return Lookup(found=None, close=named or _close(session, word), ambiguous=bool(named))


def _named(session: Session, *conditions: ColumnElement[bool]) -> list[Named]:
    rows = session.execute(
        select(Organization.id, Organization.name).where(*conditions).order_by(Organization.id).limit(CLOSE_AT_MOST)
    )
    return [Named(id=row[0], name=row[1]) for row in rows]


def _close(session: Session, word: str) -> list[Named]:
    """Names that contain the word; else names that are spelt much like it, among the first few thousand."""
    alive = Organization.status != "deleted"
    if word.strip() and (
        containing := _named(session, alive, Organization.name_key.contains(name_key(word), autoescape=True))
    ):
        return containing
    rows = session.execute(
        select(Organization.id, Organization.name, Organization.name_key).where(alive).limit(NAMES_COMPARED)
    ).all()
    by_key = {row[2]: Named(id=row[0], name=row[1]) for row in rows}
    by_id = {row[0]: Named(id=row[0], name=row[1]) for row in rows}
    known = by_id if word.startswith("org_") else by_key
    return [known[key] for key in difflib.get_close_matches(name_key(word), list(known), n=CLOSE_AT_MOST)]
