"""Import of members, one chunk at a time. A member without an organization is reported as a loss and not stored.

A member who was removed since the first import stays removed, whatever the file says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime

from sqlalchemy import ColumnElement, and_, insert, select

from core.common.validation import InvalidChangeError
from core.db.models.events import Event, EventData
from core.db.models.organizations import MEMBERSHIP_ROLES, Membership, Organization
from core.events.event_types import ChangeContext
from core.organizations.validation import MAX_USER_ID_LENGTH, checked_user_id
from core.predecessor.files import FileFinding, OldMember
from core.predecessor.published_events import record_published
from core.predecessor.report import ChunkResult

FALLBACK_ROLE = "member"
_LARGE_LIST_SIZE = 200

MemberKey = tuple[str, str]


class MemberImport:
    def __init__(self) -> None:
        self._removed: dict[str, set[str]] = {}

    def import_chunk(self, change: ChangeContext, old_members: list[OldMember]) -> ChunkResult:
        result = ChunkResult()
        org_ids = _existing_organization_ids(change, {old.org_id for old in old_members})
        usable = [old for old in old_members if _is_usable(old, org_ids, result)]
        existing = _existing_members(change, {(old.org_id, old.user_id) for old in usable})
        self._load_removed(change, {old.org_id for old in usable if (old.org_id, old.user_id) not in existing})
        new: list[tuple[OldMember, str]] = []
        for old in usable:
            role = _valid_role(old, result)
            if old.joined_at is None:
                _record_repair(old, "joined_at was set to the time of the import", result)
            current = existing.get((old.org_id, old.user_id))
            if current is not None:
                _record_differences(old, role, current, result)
            elif old.user_id in self._removed.get(old.org_id, ()):
                _record_conflict(old, "removed since the import", result)
            else:
                new.append((old, role))
        if new:
            _insert(change, new)
        result.counts.new = len(new)
        result.counts.unchanged = len(usable) - len(new)
        return result

    def _load_removed(self, change: ChangeContext, org_ids: set[str]) -> None:
        """Reads the removed members once for each organization, since one list may fill many chunks."""
        unread = org_ids - self._removed.keys()
        self._removed = {org_id: self._removed.get(org_id, set()) for org_id in org_ids}
        rows = change.session.execute(
            select(Event.org_id, Event.data).where(Event.org_id.in_(unread), Event.type == "membership.removed")
        )
        for org_id, data in rows:
            self._removed[org_id].add(str(data["user_id"]))


def _existing_organization_ids(change: ChangeContext, org_ids: set[str]) -> set[str]:
    return set(change.session.scalars(select(Organization.id).where(Organization.id.in_(org_ids))))


def _is_usable(old: OldMember, org_ids: set[str], result: ChunkResult) -> bool:
    if old.org_id not in org_ids:
        reason = "its organization is in neither the file nor the database"
    elif (problem := _user_id_problem(old.user_id)) is not None:
        reason = problem
    else:
        return True
    result.findings.append(FileFinding("loss", reason, old.position, _subject(old)))
    result.counts.rejected += 1
    return False


def _user_id_problem(user_id: str) -> str | None:
    try:
        checked_user_id("user_id", user_id)
    except InvalidChangeError as error:
        return str(error)
    return None


def _existing_members(change: ChangeContext, keys: set[MemberKey]) -> dict[MemberKey, tuple[str, datetime]]:
    """Reads short member lists whole and together, and each long list by its users.

    Pairs of keys would be simpler, but Postgres parses them as a tree of ORs, and 10,000 of them exceed its stack.
    """
    users: dict[str, list[str]] = defaultdict(list)
    for org_id, user_id in keys:
        users[org_id].append(user_id)
    large_org_ids = [org_id for org_id in users if len(users[org_id]) >= _LARGE_LIST_SIZE]
    conditions: list[ColumnElement[bool]] = [
        and_(Membership.org_id == org_id, Membership.user_id.in_(users.pop(org_id))) for org_id in large_org_ids
    ]
    conditions.append(Membership.org_id.in_(users))
    existing: dict[MemberKey, tuple[str, datetime]] = {}
    for condition in conditions:
        rows = change.session.execute(
            select(Membership.org_id, Membership.user_id, Membership.role, Membership.joined_at).where(condition)
        )
        existing |= {(row.org_id, row.user_id): (row.role, row.joined_at) for row in rows if row[:2] in keys}
    return existing


def _valid_role(old: OldMember, result: ChunkResult) -> str:
    if old.role in MEMBERSHIP_ROLES:
        return old.role
    role = old.role if len(old.role) <= 60 else f"{old.role[:60]}…"  # noqa: PLR2004 - fits on a line
    _record_repair(
        old, f"the unknown role {role!r} was imported as {FALLBACK_ROLE!r}, the least privileged role", result
    )
    return FALLBACK_ROLE


def _record_repair(old: OldMember, reason: str, result: ChunkResult) -> None:
    result.findings.append(FileFinding("repair", reason, old.position, _subject(old)))


def _record_differences(old: OldMember, role: str, current: tuple[str, datetime], result: ChunkResult) -> None:
    differs = [] if role == current[0] else ["role"]
    if old.joined_at not in {None, current[1]}:
        differs.append("joined_at")
    if differs:
        _record_conflict(old, f"{', '.join(differs)} changed since the import", result)


def _record_conflict(old: OldMember, reason: str, result: ChunkResult) -> None:
    result.conflicts.append(
        FileFinding("repair", f"kept the database's version: {reason}", old.position, _subject(old))
    )


def _insert(change: ChangeContext, new: list[tuple[OldMember, str]]) -> None:
    rows = [
        {"org_id": old.org_id, "user_id": old.user_id, "role": role, "joined_at": old.joined_at or change.now}
        for old, role in new
    ]
    change.session.connection().execute(insert(Membership), rows)
    events: Iterator[tuple[str, EventData]] = (
        (old.org_id, {"user_id": old.user_id, "role": role}) for old, role in new
    )
    record_published(change, "membership.added", events)


def _subject(old: OldMember) -> str:
    return f"{old.org_id} {old.user_id[:MAX_USER_ID_LENGTH]}"
