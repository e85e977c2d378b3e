"""Members of the old store's file, a part at a time. A member of no organization is a loss, never an orphan.

Somebody who was removed here since the first import stays removed, whatever the file says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime

from sqlalchemy import ColumnElement, and_, insert, select

from core.db.models.events import Event, EventData
from core.db.models.organizations import ROLES, Membership, Organization
from core.events.event_types import Change
from core.organizations.memberships import USER_ID_LIMIT
from core.predecessor.files import Finding, OldMember
from core.predecessor.published_events import record_published
from core.predecessor.report import Chunk

LEAST_RIGHT = "member"
_LONG_LIST = 200
# Postgres parses a list of pairs as a tree; ten thousand of them exceed its stack.
KEYS_AT_ONCE = 1000

Key = tuple[str, str]


class MemberImport:
    def __init__(self) -> None:
        self._removed: dict[str, set[str]] = {}

    def run(self, change: Change, olds: list[OldMember]) -> Chunk:
        chunk = Chunk()
        org_ids = _organizations(change, {old.org_id for old in olds})
        usable = [old for old in olds if _is_usable(old, org_ids, chunk)]
        here = _here(change, {(old.org_id, old.user_id) for old in usable})
        self._learn_removed(change, {old.org_id for old in usable if (old.org_id, old.user_id) not in here})
        new: list[tuple[OldMember, str]] = []
        for old in usable:
            role = _role(old, chunk)
            if old.joined_at is None:
                _repair(old, "the time of the import stands for joined_at", chunk)
            ours = here.get((old.org_id, old.user_id))
            if ours is not None:
                _compare(old, role, ours, chunk)
            elif old.user_id in self._removed.get(old.org_id, ()):
                _keep(old, "removed here since", chunk)
            else:
                new.append((old, role))
        if new:
            _insert(change, new)
        chunk.counted.new = len(new)
        chunk.counted.unchanged = len(usable) - len(new)
        return chunk

    def _learn_removed(self, change: Change, org_ids: set[str]) -> None:
        """Asked once an organization: a list that fills many parts of the file would read its history in each."""
        unknown = org_ids - self._removed.keys()
        self._removed = {org_id: self._removed.get(org_id, set()) for org_id in org_ids}
        rows = change.session.execute(
            select(Event.org_id, Event.data).where(Event.org_id.in_(unknown), Event.type == "membership.removed")
        )
        for org_id, data in rows:
            self._removed[org_id].add(str(data["user_id"]))


def _organizations(change: Change, org_ids: set[str]) -> set[str]:
    return set(change.session.scalars(select(Organization.id).where(Organization.id.in_(org_ids))))


def _is_usable(old: OldMember, org_ids: set[str], chunk: Chunk) -> bool:
    if old.org_id not in org_ids:
        reason = "its organization is not there: it stands in neither the file nor the database"
    elif len(old.user_id) > USER_ID_LIMIT:
        reason = f"the user_id is {len(old.user_id)} characters long, more than {USER_ID_LIMIT}"
    else:
        return True
    chunk.findings.append(Finding("loss", reason, old.place, _subject(old)))
    chunk.counted.refused += 1
    return False


def _here(change: Change, keys: set[Key]) -> dict[Key, tuple[str, datetime]]:
    """Short lists are asked for whole and together, a long one by its users.

    Pairs of keys would be simpler, but Postgres makes a tree of ORs of them, and 10,000 are too deep for it.
    """
    users: dict[str, list[str]] = defaultdict(list)
    for org_id, user_id in keys:
        users[org_id].append(user_id)
    long = [org_id for org_id in users if len(users[org_id]) >= _LONG_LIST]
    conditions: list[ColumnElement[bool]] = [
        and_(Membership.org_id == org_id, Membership.user_id.in_(users.pop(org_id))) for org_id in long
    ]
    conditions.append(Membership.org_id.in_(users))
    here: dict[Key, tuple[str, datetime]] = {}
    for condition in conditions:
        rows = change.session.execute(
            select(Membership.org_id, Membership.user_id, Membership.role, Membership.joined_at).where(condition)
        )
        here |= {(row.org_id, row.user_id): (row.role, row.joined_at) for row in rows if row[:2] in keys}
    return here


def _role(old: OldMember, chunk: Chunk) -> str:
    if old.role in ROLES:
        return old.role
    role = old.role if len(old.role) <= 60 else f"{old.role[:60]}…"  # noqa: PLR2004 - what fits on a line
    _repair(old, f"the unknown role {role!r} was read as {LEAST_RIGHT!r}, the least right", chunk)
    return LEAST_RIGHT


def _repair(old: OldMember, reason: str, chunk: Chunk) -> None:
    chunk.findings.append(Finding("repair", reason, old.place, _subject(old)))


def _compare(old: OldMember, role: str, ours: tuple[str, datetime], chunk: Chunk) -> None:
    differs = [] if role == ours[0] else ["role"]
    if old.joined_at not in {None, ours[1]}:
        differs.append("joined_at")
    if differs:
        _keep(old, f"{', '.join(differs)} changed here since", chunk)


def _keep(old: OldMember, what: str, chunk: Chunk) -> None:
    chunk.kept_ours.append(Finding("repair", f"kept ours: {what}", old.place, _subject(old)))


def _insert(change: Change, new: list[tuple[OldMember, str]]) -> None:
    rows = [
        {"org_id": old.org_id, "user_id": old.user_id, "role": role, "joined_at": old.joined_at or change.now}
        for old, role in new
    ]
    change.session.connection().execute(insert(Membership), rows)
    facts: Iterator[tuple[str, EventData]] = ((old.org_id, {"user_id": old.user_id, "role": role}) for old, role in new)
    record_published(change, "membership.added", facts)


def _subject(old: OldMember) -> str:
    return f"{old.org_id} {old.user_id[:USER_ID_LIMIT]}"
