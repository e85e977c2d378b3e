"""Search for an organization by id, by the beginning of its id, or by name, with suggestions of close matches."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from core.common.names import name_key
from core.db.models.organizations import Organization

MIN_ID_PREFIX_LENGTH = 8  # "org_" and four more
MAX_SUGGESTIONS = 5
MAX_NAMES_COMPARED = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganizationMatch:
    id: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The one match; without one, suggestions. If ``is_ambiguous``, the suggestions are several exact matches."""

    match: OrganizationMatch | None
    suggestions: list[OrganizationMatch]
    is_ambiguous: bool = False


def find_organization(session: Session, word: str) -> SearchResult:
    """By id, by name (compared as for uniqueness), or by an unambiguous beginning of an id, as a table shows it."""
    word = word.removesuffix("…")
    exact = session.get(Organization, word)
    if exact is not None:
        return SearchResult(match=OrganizationMatch(id=exact.id, name=exact.name), suggestions=[])
    matches = _find_matches(session, Organization.name_key == name_key(word), Organization.status != "deleted")
    matches = matches or _find_matches(session, Organization.name_key == name_key(word))
    if not matches and len(word) >= MIN_ID_PREFIX_LENGTH and word.startswith("org_"):
        matches = _find_matches(session, Organization.id.startswith(word, autoescape=True))
    if len(matches) == 1:
        return SearchResult(match=matches[0], suggestions=[])
    return SearchResult(match=None, suggestions=matches or _suggestions(session, word), is_ambiguous=bool(matches))


def _find_matches(session: Session, *conditions: ColumnElement[bool]) -> list[OrganizationMatch]:
    rows = session.execute(
        select(Organization.id, Organization.name).where(*conditions).order_by(Organization.id).limit(MAX_SUGGESTIONS)
    )
    return [OrganizationMatch(id=row[0], name=row[1]) for row in rows]


def _suggestions(session: Session, word: str) -> list[OrganizationMatch]:
    """Names that contain the word; without any, similar names or ids among the first ``MAX_NAMES_COMPARED``."""
    not_deleted = Organization.status != "deleted"
    if word.strip() and (
        containing := _find_matches(
            session, not_deleted, Organization.name_key.contains(name_key(word), autoescape=True)
        )
    ):
        return containing
    rows = session.execute(
        select(Organization.id, Organization.name, Organization.name_key).where(not_deleted).limit(MAX_NAMES_COMPARED)
    ).all()
    candidates: dict[str, list[OrganizationMatch]] = {}
    for org_id, name, key in rows:
        compared = org_id if word.startswith("org_") else key
        candidates.setdefault(compared, []).append(OrganizationMatch(id=org_id, name=name))
    close = difflib.get_close_matches(name_key(word), list(candidates), n=MAX_SUGGESTIONS)
    return [match for key in close for match in candidates[key]][:MAX_SUGGESTIONS]
